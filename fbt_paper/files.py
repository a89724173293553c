"""Write a file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from fbt_core.files import make_folder, write_bytes


def publish(path: Path, text: str) -> None:
    """Write to a temporary name, flush to the disk, rename: a file that exists is complete.

    Raises UserError, with what to do about it, where the disk does not take it.
    """
    make_folder(path.parent)
    write_bytes(path, text.encode())

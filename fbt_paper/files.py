"""Write a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def publish(path: Path, text: str) -> None:
    """Write to a temporary name, flush to the disk, rename: a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)

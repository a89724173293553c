"""Jobs of one node start up a few at a time: as many as the node has processors.

An inner Snakemake needs about a second of a processor before the rule's program runs. Where many jobs begin
at the same moment, starting all of them at once makes each slow, and their programs then run and end in step.
So each job takes one of the node's places first, and gives it back when its program begins (shell_init.sh).
Places are files; one that nobody gives back is free again after a few seconds, and no job waits long.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["place_to_start"]

KEPT_S = 5.0
"""A place is free again after this time: rules without a shell (`run:`) never give theirs back."""
PATIENCE_S = 60.0
POLL_S = 0.05


@contextmanager
def place_to_start(folder: Path | None = None, places: int | None = None) -> Iterator[Path | None]:
    """Wait for one of the node's places; inside, its file's path (None if none was to be had)."""
    folder = folder or Path(tempfile.gettempdir()) / f"snakemake-submitit-{os.getuid()}"
    owner = uuid.uuid4().hex
    place = _wait(folder, places or os.cpu_count() or 1, owner)
    try:
        yield place
    finally:
        if place is not None:
            _give_back(place, owner)


def _wait(folder: Path, places: int, owner: str) -> Path | None:
    """The file of a free place; None after a while, or where no files can be made."""
    deadline = time.monotonic() + PATIENCE_S
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        while time.monotonic() < deadline:
            for path in (folder / f"place{number}" for number in range(places)):
                if _take(path, owner):
                    return path
            time.sleep(POLL_S)
    except OSError:  # a full or missing folder must not keep a job from starting
        return None
    return None


def _take(path: Path, owner: str) -> bool:
    """Make the file of a place; False if another job has it."""
    try:
        with path.open("x") as file:
            file.write(owner)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
        return False
    return True


def _give_back(path: Path, owner: str) -> None:
    """Remove the file unless the program has done so already and another job has the place now."""
    with contextlib.suppress(OSError):
        if path.read_text() == owner:
            path.unlink()

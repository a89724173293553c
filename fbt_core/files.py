"""Files that are whole or absent: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fbt_core.errors import UserError

ADVICE = {
    errno.ENOSPC: "free some space, then run the same command again: it continues",
    errno.EDQUOT: "free some of your quota, then run the same command again: it continues",
    errno.EACCES: "make the folder writable or choose another one",
    errno.EPERM: "make the folder writable or choose another one",
    errno.EROFS: "choose a folder on a disk that can be written",
}


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in place in one step.

    A full disk, a missing right or any other failure leaves `path` as it was and is a UserError.
    """
    # Beside the target: a rename is one step on one file system only. The process id keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_through(temporary, write)
        os.replace(temporary, path)
        # Without it a power cut could leave the new name pointing at nothing.
        flush_folder(path.parent)
    except OSError as error:
        # from None: a full disk is the user's to clear, and a traceback would hide the line that says so.
        raise cannot_write(path, error) from None
    finally:
        # After a success the name is gone already; after a failure the remains would fill the disk further.
        with contextlib.suppress(OSError):
            temporary.unlink()


class _Remembering:
    """A file that keeps the first OSError met in it: torch's writer makes a RuntimeError of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, content: Any) -> int:
        return self._try(self.file.write, content)

    def flush(self) -> None:
        self._try(self.file.flush)

    def _try(self, act: Callable[..., Any], *values: Any) -> Any:
        try:
            return act(*values)
        except OSError as error:
            # The first one is the cause; what torch meets afterwards, closing its archive, follows from it.
            self.error = self.error or error
            raise


def _write_through(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write and fsync; an error that torch's writer makes of one of the disk's is the disk's again."""
    with path.open("wb") as file:
        watched = _Remembering(file)
        try:
            write(watched)
        except RuntimeError:
            # Not the disk's: a bug, which shows itself.
            if watched.error is None:
                raise
            raise watched.error from None
        # Into the kernel, then onto the disk, before the file gets its name.
        watched.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut, if the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file with this content."""
    write_file(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """A whole UTF-8 file with this text; its folder is made if it is missing."""
    make_folder(path.parent)
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """A whole JSON file; NaN and infinity are refused."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def make_folder(path: Path) -> None:
    """Create a folder and those above it; a UserError says why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> UserError:
    """The user's error for a failed write, with what to do about it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"cannot be written: {reason}", where=str(path), hint=ADVICE.get(error.errno or 0))


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of processes that were killed while writing."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            path.unlink()

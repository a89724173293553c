"""Jobs of one node start up in turn: no more at once than the node has cores.

A job's own Snakemake needs a second of a core before the rule's program runs. If more jobs than cores begin
at the same moment, all of them start slowly, and their programs then run and end in step, with idle cores.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["STARTED", "Turn"]

STARTED = "SNAKEMAKE_SUBMITIT_STARTED"
"""Names a file that shell_init.sh makes as soon as the rule's shell begins."""
LONGEST_S = 5.0
PATIENCE_S = 30.0
POLL_S = 0.05


class Turn:
    """One of a node's turns to start up: waited for when made, and over when the rule's program runs.

    The locks end with their process and lie in the workflow's own folder, so that no other user can hold its
    jobs up, as can be with gpu_slots.py, whose slots are waited for however long. Nothing here is worth a
    failed job: if the folder cannot be used, jobs start at once.
    """

    def __init__(self, folder: Path, job_id: str) -> None:
        self.started = folder / f"{job_id}.started"
        self._lock: int | None = None
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self.started.unlink(missing_ok=True)
            self._lock = wait_for_lock(folder)
        # Rules without a shell (`run:`) never say that they have begun.
        self._over = time.monotonic() + LONGEST_S

    def end_if_started(self) -> None:
        """End the turn if the rule's program runs by now."""
        if self._lock is not None and (self.started.exists() or time.monotonic() > self._over):
            self.end()

    def end(self) -> None:
        """Let the next job start up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with suppress(OSError):
            self.started.unlink(missing_ok=True)


def wait_for_lock(folder: Path) -> int | None:
    """An open file that is locked, one of as many as this node has cores; None if all stay taken too long."""
    files = [folder / f"{socket.gethostname()}-{number}" for number in range(os.cpu_count() or 1)]
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for file in files:
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if not isinstance(error, BlockingIOError):  # a file system without locks
                    raise
            else:
                return lock
        time.sleep(POLL_S)
    return None

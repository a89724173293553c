"""The folder of one run: its log, history, progress and results, each written whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fbt_core.errors import Interrupted, UserError
from fbt_core.files import make_folder, remove_leftovers, write_bytes, write_json
from fbt_core.packs import Ending
from fbt_core.provenance import now
from fbt_core.run_files import (
    HISTORY_FILE,
    LOG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    PROGRESS_FILE,
    READY_FOLDER,
    SPEC_FILE,
    WEIGHTS_FILE,
    has_results,
    is_ready,
    read_json,
)
from fbt_core.spec import RunSpec
from fbt_core.weights import serialise

PROGRESS_SECONDS = 2.0


class RunFolder:
    """`runs/<run id>`. With `writes` False (every process but the first) nothing is written.

    With `to_publish` the results are left in `ready/`, from where fbt_core.publish takes them. `error` says
    what ended the run before its end; `label` stands before its lines on the terminal. Others go on without
    a run that `shares` its training with them.
    """

    def __init__(
        self,
        runs: Path,
        spec: RunSpec,
        writes: bool = True,
        to_publish: bool = False,
        label: str = "",
        shares: bool = False,
    ) -> None:
        self.path, self.spec, self.writes = runs / spec.id, spec, writes
        self.to_publish, self.label, self.shares = to_publish, label, shares
        self.error: UserError | None = None
        self.too_large: list[int] = []  # packs with this run that the memory did not hold
        self.opened = False
        self._progress_written = 0.0
        self._lock: Any = None

    def open(self) -> None:
        """Create the folder, take its lock and remove what a killed process left half written."""
        if self.writes:
            self._prepare()
        self.opened = True

    def _prepare(self) -> None:
        make_folder(self.path)
        if self._lock is None:  # a run that waited for the first half of its pack holds it
            self._take_lock()
        # A killed process leaves temporary files, and nobody else's can be here: the lock is held.
        remove_leftovers(self.path)
        remove_leftovers(self.path / READY_FOLDER)
        # Written at the start: tools that look at the run read its settings here.
        write_json(self.path / SPEC_FILE, self.spec.model_dump(mode="json"))

    def _take_lock(self) -> None:
        """Refuse to train a run that another process on this machine is training."""
        try:
            self._lock = (self.path / "lock").open("w")
            # Not flock: loader processes would inherit that one and hold it after the run was killed.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another process is training this run", where=str(self.path)) from None
        except OSError as error:  # no locks here; a folder that cannot be written is reported below
            self.note(f"no lock: {error}")

    @property
    def is_taken(self) -> bool:
        """Whether another process of this machine trains this run."""
        if not self.writes or self._lock is not None:  # closing a second handle would give up our own lock
            return False
        try:
            with (self.path / "lock").open("r+") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no folder yet, or no locks here
            return False
        return False

    @contextlib.contextmanager
    def ends_alone(self, alone: bool = True) -> Iterator[None]:
        """A user's error inside ends this run and no other (with `alone` False: it goes on to the caller)."""
        try:
            yield
        except UserError as error:
            if not alone:
                raise
            # Noted before the folder is closed, so that the loop sees it as ended.
            self.error = error
            self.close(error)
            if self.shares and self.writes:
                print(f"{self.label}{error}; the other runs go on", file=sys.stderr, flush=True)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: the run failed, or its results are there."""
        return self.error is not None or self.complete or self.ready

    @property
    def ending(self) -> Ending:
        """How the run ended."""
        if self.error is not None:
            return Ending("failed", str(self.error))
        return Ending("complete" if self.complete else "ready")

    @property
    def complete(self) -> bool:
        """Whether both results are there: nothing is left to do."""
        # Both: weights are written first, so metrics alone mean that something was deleted.
        return has_results(self.path)

    @property
    def ready(self) -> bool:
        """Whether a pack left both results to be published."""
        return is_ready(self.path)

    def note(self, text: str, terminal: bool = True) -> None:
        """One line to the terminal and to log.txt; a full disk does not stop it."""
        if not self.writes:
            return
        if terminal:
            print(self.label + text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), (self.path / LOG_FILE).open("a") as file:
            file.write(f"{now()} {text}\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """One line per finished epoch; lines of epochs that are trained again are replaced."""
        if self.writes:
            # Written whole: a resumed run replaces the lines of epochs that it trains again.
            lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
            write_bytes(self.path / HISTORY_FILE, lines.encode())

    def write_progress(self, content: Mapping[str, Any], force: bool = False) -> None:
        """Where the run stands, at most every two seconds unless forced."""
        # Every step asks; a write each would wear the disk and slow a network file system.
        if not self.writes or (not force and time.monotonic() - self._progress_written < PROGRESS_SECONDS):
            return
        self._progress_written = time.monotonic()
        # It only informs: what a full disk costs the run, the next checkpoint reports.
        with contextlib.suppress(UserError):
            write_json(self.path / PROGRESS_FILE, {**content, "updated": now(), "pid": os.getpid()})

    def change_progress(self, state: str, error: str | None = None) -> None:
        """Mark the run as interrupted or failed; never raises, it is called on the way out."""
        # Read again: progress of an earlier attempt is kept, only its state changes.
        with contextlib.suppress(Exception):
            content = read_json(self.path / PROGRESS_FILE) or {}
            self.write_progress({**content, "state": state, "error": error}, force=True)

    def close(self, error: Exception | None = None) -> None:
        """Let others take the folder; if the run ends before its end, note why."""
        if self.opened and error is not None:  # else nothing was begun, or the folder is another process's
            self.change_progress("interrupted" if isinstance(error, Interrupted) else "failed", str(error))
            if isinstance(error, UserError | Interrupted):
                self.note(str(error), terminal=False)
        self.opened = False
        # Closing the file gives up the lock.
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def publish_predictions(self, classes: Mapping[str, Tensor]) -> None:
        """Write the predicted class of every test image (best, last and EMA's epoch) and the labels.

        One byte or two an image. Verdicts on the paper's claims pair two runs image by image.
        """
        if not self.writes:
            return
        # Into memory first, because write_bytes makes a file whole or not at all.
        content = io.BytesIO()
        most = max(int(values.max()) for values in classes.values())
        kind = np.uint8 if most < 256 else np.uint16
        np.savez_compressed(
            content, **{name: values.numpy().astype(kind) for name, values in classes.items()}
        )
        write_bytes(self.path / PREDICTIONS_FILE, content.getvalue())

    def publish(self, weights: Mapping[str, Tensor], metrics: Mapping[str, Any]) -> None:
        """Write the results: weights first, metrics last, each by renaming."""
        if not self.writes:
            return
        # A pack's results wait: Snakemake deletes what a failed job has declared.
        folder = self.path / READY_FOLDER if self.to_publish else self.path
        make_folder(folder)
        # Hashed as written, so that the digest is that of the file.
        content = serialise(weights)
        write_bytes(folder / WEIGHTS_FILE, content)
        digest = hashlib.sha256(content).hexdigest()
        write_json(folder / METRICS_FILE, {**metrics, "weights_sha256": digest})

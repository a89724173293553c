"""What one job has lived through, kept on disk by the job itself.

A job may be started several times (time limit, preemption, node failure, `scontrol requeue`), and only files
survive that. The record is one small JSON file per submission, written by the job on its node and read by the
controller:

    starts         [{"time", "host", "job_id"}]    one entry per start
    interruptions  [{"time", "cause"}]             cause: "time limit", "preemption" or "SIGTERM"
    last_seen      seconds since 1970, renewed about every 30 s while the job runs
    queue_wait_s   seconds spent waiting in the queue, over all starts
    peak_memory_mb the largest memory of the job's processes together, sampled
    ended, exit_code   set when the rule's command has ended for good
    missing        outputs that did not appear on the node although the command has ended with 0, and inputs
                   that the node does not see
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["JobRecord", "write_json"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is always whole: to a temporary name, flushed, then renamed."""
    # A name of its own each time: controllers and jobs write to one folder from several machines.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        # Flushed before the rename: after a crash the name could else stand for an empty file.
        os.fsync(stream.fileno())
    temporary.replace(path)


@dataclass
class JobRecord:
    """Starts, interruptions, waiting time and memory of one submitted job."""

    submitted: float
    starts: list[dict[str, Any]] = field(default_factory=list)
    interruptions: list[dict[str, Any]] = field(default_factory=list)
    last_seen: float | None = None
    queue_wait_s: float = 0.0
    run_s: float = 0.0
    peak_memory_mb: float = 0.0
    ended: float | None = None
    exit_code: int | None = None
    missing: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> JobRecord | None:
        """Read a record; None if there is none yet or it cannot be read."""
        try:
            content = json.loads(path.read_text())
            known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
            return cls(**known)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def save(self, path: Path) -> None:
        """Publish the record; a full or vanished disk must not end the training."""
        try:
            write_json(path, asdict(self))
        except OSError as error:
            print(f"submitit: the job's record {path} could not be written: {error}", flush=True)

    def start(self, host: str, job_id: str) -> None:
        """Note that the job starts now, and how long it has waited since it was last seen."""
        now = time.time()
        # A node that fails writes no end, so the last sign of life is where the waiting began.
        waiting_since = self.submitted if self.last_seen is None else self.last_seen
        self.queue_wait_s += max(0.0, now - waiting_since)
        self.starts.append({"time": now, "host": host, "job_id": job_id})
        # An earlier start may have noted an end that Slurm did not take for one.
        self.last_seen, self.ended, self.exit_code = now, None, None
        self.missing = []

    def seen(self) -> None:
        """Note that the job still runs."""
        # Added up in small steps: time in the queue between two starts is no time on a GPU.
        now = time.time()
        self.run_s += max(0.0, now - (self.last_seen or now))
        self.last_seen = now

    def interrupt(self, cause: str) -> None:
        """Note why the job was interrupted."""
        self.interruptions.append({"time": time.time(), "cause": cause})

    def end(self, exit_code: int) -> None:
        """Note that the rule's command has ended for good."""
        self.seen()
        self.ended = self.last_seen
        self.exit_code = exit_code

    @property
    def restarts(self) -> int:
        """How often the job was started again."""
        return max(0, len(self.starts) - 1)

    @property
    def timeouts(self) -> int:
        """How often the time limit interrupted the job."""
        return sum(1 for entry in self.interruptions if entry["cause"] == "time limit")

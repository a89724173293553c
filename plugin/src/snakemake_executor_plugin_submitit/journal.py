"""The journal: one small JSON file per job in `.snakemake/submitit/journal/`; nothing is submitted twice.

A job is known by its declared outputs, not by Snakemake's or Slurm's numbers: the next call of Snakemake
builds the same key and finds the job that an earlier call has submitted. Each file is always whole (written
to a temporary name, then renamed); other programs read them with `read_jobs`, which needs nothing of
Snakemake and asks no cluster. Fields:

    key             first 20 hex digits of the sha256 of the declared outputs (of rule and wildcards where
                    there are none)
    name            rule and wildcards, for people
    rule, wildcards, outputs
    cluster         slurm | local | debug;  cluster_name: the name of Slurm's cluster, or null
    state           SUBMITTING, PENDING, RUNNING, then Slurm's word for the end: COMPLETED, FAILED, TIMEOUT,
                    OUT_OF_MEMORY, NODE_FAIL, BOOT_FAIL, CANCELLED, PREEMPTED, DEADLINE; or LOST: gone from
                    the queue without a trace
    host            machine whose processes the jobs of cluster local are; null on other clusters
    job_id          12, or 12_3 for a task of an array; null while SUBMITTING
    token, index    mark of the submission (sbatch --comment) and index in its array; null if it is no array
    script          the script with the inner Snakemake;  submission: the script given to sbatch
    log, error_log  what the job prints
    record          JSON file that the job itself keeps on its node (see record.py); newer than this one while
                    no controller runs: restarts, queue wait, peak memory
    result          file that exists when submitit's function has returned
    submitted, started, last_started, ended     seconds since 1970, or null; a requeued job was started again
    reason          why the job waits, in Slurm's word (PartitionTimeLimit, ...), or null
    restarts, timeouts, queue_wait_s, peak_memory_mb, gpus, gpu_hours, node
    exit_code       of the rule's command, or null
    message         what was reported to the user when it failed, or null
    fingerprint     sha256 of the rule's shell command and parameters
    resources       what was asked of the cluster
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.record import JobRecord, write_json

__all__ = ["ACTIVE_STATES", "Journal", "JournalEntry", "make_key", "read_jobs", "sweep"]

ACTIVE_STATES = frozenset({"SUBMITTING", "PENDING", "RUNNING"})


@dataclass
class JournalEntry:
    """All that is known of one job; see the module's docstring for the fields."""

    key: str
    name: str
    rule: str
    wildcards: dict[str, str]
    outputs: list[str]
    cluster: str
    token: str
    script: str
    record: str
    submitted: float
    fingerprint: str = ""
    state: str = "SUBMITTING"
    job_id: str | None = None
    index: int | None = None
    cluster_name: str | None = None
    host: str | None = None
    submission: str | None = None
    log: str | None = None
    error_log: str | None = None
    result: str | None = None
    started: float | None = None
    last_started: float | None = None
    ended: float | None = None
    reason: str | None = None
    restarts: int = 0
    timeouts: int = 0
    queue_wait_s: float = 0.0
    peak_memory_mb: float | None = None
    gpus: int = 0
    gpu_hours: float = 0.0
    node: str | None = None
    exit_code: int | None = None
    message: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether the job may still be in the queue, as far as the journal knows."""
        return self.state in ACTIVE_STATES

    def absorb(self, record: JobRecord) -> None:
        """Take over what the job itself has noted on its node."""
        # A job in the queue has noted nothing yet, and what the queue has shown of its node stays.
        if record.starts:
            self.started = record.starts[0].get("time")
            self.last_started = record.starts[-1].get("time")
            self.node = record.starts[-1].get("host")
        self.restarts, self.timeouts = record.restarts, record.timeouts
        self.queue_wait_s = round(record.queue_wait_s, 1)
        self.peak_memory_mb = round(record.peak_memory_mb, 1) or None
        self.gpu_hours = round(self.gpus * record.run_s / 3600, 4)
        self.ended, self.exit_code = record.ended, record.exit_code


def read_jobs(folder: Path) -> list[JournalEntry]:
    """Every job of a workflow's `.snakemake/submitit` folder, as it stands now; oldest submission first.

    Where no controller has kept the journal since, the job's own record is taken: its restarts, times and
    memory, and COMPLETED or FAILED once the job has noted its end. Only files are read, and a file that
    is missing, damaged or not ours counts as none.
    """
    jobs = [entry for path in (folder / "journal").glob("*.json") if (entry := read_entry(path)) is not None]
    for entry in jobs:
        record = JobRecord.load(Path(entry.record))
        # A judged entry knows more than the record: Slurm's word for the end and the report to the user.
        if record is None or not entry.active:
            continue
        entry.absorb(record)
        if record.ended is not None:
            entry.state = "COMPLETED" if record.exit_code == 0 else "FAILED"
    return sorted(jobs, key=lambda entry: entry.submitted)


def make_key(outputs: Iterable[str], rule: str, wildcards: dict[str, str]) -> str:
    """Name a job by what it makes, or by its rule and wildcards if it declares nothing."""
    # Sorted, so that the order in which a rule names its outputs does not make another job of it.
    named = sorted(outputs) or [rule, *(f"{name}={value}" for name, value in sorted(wildcards.items()))]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:20]


def sweep(folder: Path, journal: Journal, days: float) -> None:
    """Remove logs, records and scripts of jobs that ended long ago; the journal's entries stay."""
    # A job that may start again needs its script, its function and its record, however old they are.
    active = [entry for entry in journal.entries() if entry.active]
    # Files of an array's tasks begin with the number of the array, and those of a submission with its mark.
    kept = {name.split("_")[0] for entry in active for name in (entry.job_id, entry.token) if name}
    scripts = {str(Path(entry.script).parent) for entry in active}
    before = time.time() - 86400 * days
    for path in [*(folder / "jobs").iterdir(), *(folder / "records").iterdir()]:
        if path.name.split("_")[0] not in kept and path.lstat().st_mtime < before:
            path.unlink(missing_ok=True)
    for path in folder.glob("scripts/*"):
        if str(path) not in scripts and path.lstat().st_mtime < before:
            shutil.rmtree(path, ignore_errors=True)


class Journal:
    """The folder with one file per job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in (folder, folder.parent / "records"):
            path.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """The file of one job."""
        return self.folder / f"{key}.json"

    def write(self, entry: JournalEntry) -> None:
        """Publish what is known of a job."""
        write_json(self.path(entry.key), asdict(entry))

    def read(self, key: str) -> JournalEntry | None:
        """What is known of a job, or None."""
        return read_entry(self.path(key))

    def note_submission(self, token: str, keys: list[str]) -> None:
        """Write down which jobs go out together: it finds them again if their own files are damaged."""
        write_json(self.folder.parent / "records" / f"{token}_keys.json", {"keys": keys})

    def submission_of(self, key: str) -> tuple[str, int | None] | None:
        """Mark of a job's last submission and its index in the array."""
        # Newest first: a job that was submitted again is known by its last mark.
        files = (self.folder.parent / "records").glob("*_keys.json")
        for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(OSError, ValueError, KeyError):
                keys = json.loads(path.read_text())["keys"]
                if key in keys:
                    return path.name.split("_")[0], keys.index(key) if len(keys) > 1 else None
        return None

    def damaged(self) -> set[str]:
        """Keys of the files that cannot be read: nobody knows from them whether their jobs run."""
        return {path.stem for path in self.folder.glob("*.json") if read_entry(path) is None}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other controllers of this folder (--nolock) from submitting meanwhile; the kernel unlocks."""
        with (self.folder / ".lock").open("w") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def entries(self) -> Iterator[JournalEntry]:
        """All jobs that were ever submitted from this folder."""
        for path in sorted(self.folder.glob("*.json")):
            if (entry := read_entry(path)) is not None:
                yield entry


def read_entry(path: Path) -> JournalEntry | None:
    """Read one file of the journal; a file that cannot be read, or is none of ours, counts as no entry."""
    try:
        # Only known fields: a newer version may have written more, and its jobs must still be found.
        content = json.loads(path.read_text())
        known = {name: value for name, value in content.items() if name in JournalEntry.__dataclass_fields__}
        entry = JournalEntry(**known)
        # Entries are sorted by this number; a damaged one would make every reader fail.
        entry.submitted = float(entry.submitted)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return entry if isinstance(entry.wildcards, dict) else None

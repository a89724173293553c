"""The Slurm jobs of runs, from the executor's journal: which job trains which run, and in what state it is.

The executor itself reads its journal; only files are read (no squeue, no sacct), so that this works without a
running controller and from any login shell. Without the executor there are no jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fbt_paper.plan.packs import PackFiles

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.journal import JournalEntry

ACTIVE_STATES = ("SUBMITTING", "PENDING", "RUNNING")
ENDED_WELL = ("COMPLETED", "UNKNOWN", "")


@dataclass(frozen=True)
class Job:
    """One job of a run: its id, Slurm's state and reason, requeues, log, costs and times.

    `begun` is when it was submitted or last started, `ended` when it ended: seconds since 1970, or None.
    """

    job: str
    state: str
    reason: str = ""
    restarts: int = 0
    log: str = ""
    queue_wait_s: float = 0.0
    gpu_hours: float = 0.0
    peak_memory_mb: float = 0.0
    begun: float | None = None
    ended: float | None = None

    @property
    def active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in ACTIVE_STATES

    @property
    def failed(self) -> bool:
        """Whether the job has ended and not well."""
        return not self.active and self.state not in ENDED_WELL


def newest_jobs(folder: Path) -> dict[str, Job]:
    """The newest job of every run that the executor's journal in `folder` knows, by run id."""
    try:
        from snakemake_executor_plugin_submitit.journal import read_jobs
    except ImportError:  # the executor is a distribution of its own
        return {}
    # The journal's order is that of submission, so the newest job of a run replaces the older ones.
    newest = {run: (entry, runs) for entry in read_jobs(folder) for runs in [runs_of(entry)] for run in runs}
    return {run: as_job(entry, len(runs)) for run, (entry, runs) in newest.items()}


def runs_of(entry: JournalEntry) -> tuple[str, ...]:
    """The runs that a job trains: its own, or those of its pack, which lie beside the pack's marker."""
    if "pack" in entry.wildcards and entry.outputs:
        return PackFiles(str(Path(entry.outputs[0]).parent)).runs(entry.wildcards["pack"])
    return (entry.wildcards["run"],) if "run" in entry.wildcards else ()


def as_job(entry: JournalEntry, runs: int = 1) -> Job:
    """What the status of a run needs of a job that trains so many; each has its share of the job's hours."""
    logs = [path for path in (entry.error_log, entry.log) if path]
    # An empty log explains nothing: errors first, then output, whichever holds something.
    written = [path for path in logs if Path(path).is_file() and Path(path).stat().st_size]
    # The newest of them: a requeued job was started again long after it was submitted.
    times = [time for time in (entry.submitted, entry.started, entry.last_started) if time]
    return Job(
        job=entry.job_id or "",
        state=entry.state,
        reason=(entry.message or entry.reason or "").strip(),
        restarts=entry.restarts,
        log=next(iter([*written, *logs]), ""),
        queue_wait_s=entry.queue_wait_s,
        gpu_hours=entry.gpu_hours / runs,
        peak_memory_mb=entry.peak_memory_mb or 0.0,
        begun=max(times, default=None),
        ended=entry.ended,
    )

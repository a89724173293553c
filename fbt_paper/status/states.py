"""`fbt status`: where every run of every table stands, read from files only.

Sources, all of them optional: `<runs>/<id>/{progress.json, history.jsonl, metrics.json, log.txt}` written by
the engine and the journal of the Slurm executor, `.snakemake/submitit/` (format: plugin/README.md).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fbt_core.spec import RunSpec
from fbt_paper.status.run_folder import Record, number, parse_time, read_history, read_json, read_tail

STATES = ("running", "silent", "interrupted", "failed", "queued", "waiting", "done")
SILENT_AFTER_SECONDS = 900.0
"""A run that says `running` but wrote nothing for so long is shown as silent: killed, or its node is gone."""
CLOCKS_DIFFER_SECONDS = 60.0
"""Clocks of two machines may differ by so much; only what is newer by more is taken as newer."""


FAILED_JOB_STATES = frozenset(
    {
        "FAILED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "CANCELLED",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
        "LOST",
    }
)
ENDED_JOB_STATES = FAILED_JOB_STATES | {"COMPLETED", "UNKNOWN", ""}


@dataclass(frozen=True)
class JobRecord:
    """What the executor's journal says of a run's job: id, Slurm's state and reason, requeues, log, times.

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
    def failed(self) -> bool:
        """Whether the job has ended and not well."""
        return self.state in FAILED_JOB_STATES

    @property
    def active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state not in ENDED_JOB_STATES


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands; numbers that are not known yet are None."""

    run: str
    state: str
    epoch: int = 0
    epochs: int | None = None
    top1: float | None = None
    best_top1: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    seconds_per_epoch: float | None = None
    restarts: int = 0
    queue_wait_s: float = 0.0
    gpu_hours: float = 0.0
    peak_memory_mb: float = 0.0
    job: str = ""
    note: str = ""
    log: str = ""
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overview:
    """All tables with their runs, the totals over different runs, and when all of it should be done."""

    tables: Mapping[str, tuple[RunStatus, ...]]
    totals: Mapping[str, int]
    gpu_hours: float
    expected_end: datetime | None


def observe_run(
    folder: Path, spec: RunSpec | None, job: JobRecord | None, done: Callable[[str], bool], now: datetime
) -> RunStatus:
    """Where the run of one folder stands, by its newest evidence: metrics, progress, journal, nothing."""
    metrics = read_json(folder / "metrics.json")
    if metrics is not None:
        return _account(_done(folder.name, metrics), metrics, job)
    progress = read_json(folder / "progress.json")
    status = _started(folder, progress, job, now) if progress else _not_started(folder, spec, job, done, now)
    return _account(status, {}, job)


def _account(status: RunStatus, metrics: Record, job: JobRecord | None) -> RunStatus:
    """The status with what the run has cost so far, by its metrics or its job, whichever says more."""
    execution = metrics.get("execution") or {}

    def largest(key: str, source: Record) -> float:
        own = (getattr(status, key), getattr(job, key, 0.0))
        return max(number(source.get(key)) or 0.0, *map(float, own))

    return replace(
        status,
        restarts=int(largest("restarts", execution)),
        queue_wait_s=largest("queue_wait_s", execution),
        gpu_hours=largest("gpu_hours", execution),
        peak_memory_mb=largest("peak_memory_mb", metrics),
    )


def _done(run: str, metrics: Record) -> RunStatus:
    history = metrics.get("history") or []
    best = number((metrics.get("best") or {}).get("top1"))
    return RunStatus(
        run=run,
        state="done",
        epoch=len(history),
        epochs=len(history),
        top1=number((metrics.get("last") or {}).get("top1")),
        best_top1=best,
        images_per_second=number(metrics.get("images_per_second")),
        seconds_per_epoch=_epoch_seconds(history),
    )


def _not_started(
    folder: Path, spec: RunSpec | None, job: JobRecord | None, done: Callable[[str], bool], now: datetime
) -> RunStatus:
    epochs = spec.recipe.epochs if spec else None
    base = RunStatus(run=folder.name, state="waiting", epochs=epochs, note="not started")
    if job is not None and job.failed:
        log, lines = _last_words(folder, job)
        return replace(
            base, state="failed", job=job.job, note=job.reason or job.state, log=log, last_lines=lines
        )
    if job is not None and job.active:
        begun = job.state == "RUNNING"
        note = "starting" if begun else job.reason or job.state.lower()
        return replace(base, state="running" if begun else "queued", job=job.job, note=note)
    if (folder / "spec.json").exists():
        quiet = (now - datetime.fromtimestamp((folder / "spec.json").stat().st_mtime, UTC)).total_seconds()
        state, note = _judge_silence(quiet, job)
        return replace(base, state=state, note=note or "starting", job=job.job if job else "")
    missing = [needed for needed in (spec.needed_runs() if spec else ()) if not done(needed)]
    return replace(base, note=f"needs {', '.join(map(without_dataset, missing))}") if missing else base


def without_dataset(run: str) -> str:
    """A run id without its first part: short, and still enough for `fbt show`."""
    return run.partition("-")[2] or run


def _started(folder: Path, progress: Record, job: JobRecord | None, now: datetime) -> RunStatus:
    history = read_history(folder)
    state, note = _judge_progress(progress, job, now)
    by_job = state == "failed" and progress.get("state") != "failed"
    log, lines = _last_words(folder, job if by_job else None) if state == "failed" else ("", ())
    return RunStatus(
        run=folder.name,
        state=state,
        epoch=int(number(progress.get("epoch")) or 0),
        epochs=int(number(progress.get("epochs")) or 0) or None,
        top1=number(history[-1].get("top1")) if history else None,
        best_top1=number(progress.get("best_top1")),
        images_per_second=number(progress.get("images_per_second")) if state == "running" else None,
        seconds_left=number(progress.get("seconds_left")) if history else None,
        seconds_per_epoch=_epoch_seconds(history),
        restarts=int(number(progress.get("attempt")) or 0),
        job=job.job if job else "",
        note=note,
        log=log,
        last_lines=lines,
    )


def _last_words(folder: Path, job: JobRecord | None) -> tuple[str, tuple[str, ...]]:
    """The log that tells of a failure, and its last lines: the job's where the job failed, else the run's."""
    own = folder / "log.txt"
    paths = [Path(job.log), own] if job is not None and job.log else [own]
    for path in paths:
        if lines := read_tail(path):
            return str(path), lines
    return (str(paths[0]), ()) if len(paths) > 1 or own.exists() else ("", ())


def _judge_progress(progress: Record, job: JobRecord | None, now: datetime) -> tuple[str, str]:
    """State and note of a run that has begun but not published its metrics; the newest evidence counts."""
    state = str(progress.get("state", ""))
    updated = parse_time(progress.get("updated"))
    if job is not None and job.active and _is_newer(job.begun, updated):
        return _judge_new_job(job, state, str(progress.get("error") or ""))
    if state == "failed":
        return "failed", str(progress.get("error") or "")
    if job is not None and job.failed and not _goes_on_after(job, updated):
        return "failed", f"job {job.job}: {job.reason or job.state}"
    if state == "interrupted":
        waiting = job is not None and job.active
        return (
            ("queued", "saved, requeued")
            if waiting
            else ("interrupted", "saved; the next call of snakemake goes on")
        )
    return _judge_silence((now - updated).total_seconds() if updated else 0.0, job)


def _is_newer(moment: float | None, updated: datetime | None) -> bool:
    return moment is not None and updated is not None and moment > updated.timestamp()


def _goes_on_after(job: JobRecord, updated: datetime | None) -> bool:
    """Whether the run has written something well after its job ended: it was started again without one."""
    if job.ended is None or updated is None:
        return False
    return updated.timestamp() > job.ended + CLOCKS_DIFFER_SECONDS


def _judge_new_job(job: JobRecord, state: str, error: str) -> tuple[str, str]:
    """A job that was submitted or started after the run last wrote: what it wrote is of an earlier one."""
    before = f"failed before: {error}" if state == "failed" else ""
    if job.state == "RUNNING":
        return "running", f"starting; {before}" if before else "starting"
    reason = job.reason or ("saved, requeued" if state == "interrupted" else "requeued")
    return "queued", f"{reason}; {before}" if before else reason


def _judge_silence(quiet: float, job: JobRecord | None) -> tuple[str, str]:
    """Running while it writes; silent after a while, or queued where its job waits again."""
    if quiet <= SILENT_AFTER_SECONDS:
        return "running", ""
    if job is not None and job.state == "PENDING":
        return "queued", job.reason or "requeued"
    return "silent", f"wrote nothing for {format_duration(quiet)}"


def _epoch_seconds(history: Sequence[Record]) -> float | None:
    """Median seconds from one epoch's end to the next, evaluation included; those of training at least."""
    trained = [number(record.get("seconds")) for record in history]
    whole = [_seconds_between(*pair) for pair in zip(history, history[1:], strict=False)]
    seconds = [value for value in trained if value is not None]
    between = [value for value in whole if value is not None]
    return max(map(statistics.median, filter(None, (seconds, between))), default=None)


def _seconds_between(first: Record, second: Record) -> float | None:
    """Seconds between two epochs' ends; None where a restart lies between them."""
    ends = [parse_time(record.get("finished")) for record in (first, second)]
    if None in ends or first.get("attempt") != second.get("attempt"):
        return None
    return (ends[1] - ends[0]).total_seconds()  # type: ignore[operator]


def observe_tables(
    runs_folder: Path,
    tables: Mapping[str, Sequence[str]],
    specs: Mapping[str, RunSpec],
    jobs: Mapping[str, JobRecord],
    now: datetime,
) -> Overview:
    """Where all runs of the tables stand; a run that several tables share is read once and counted once."""
    done = _remember(lambda run: (runs_folder / run / "metrics.json").exists())
    statuses = {
        run: observe_run(runs_folder / run, specs.get(run), jobs.get(run), done, now)
        for run in dict.fromkeys(run for runs in tables.values() for run in runs)
    }
    counts = Counter(status.state for status in statuses.values())
    return Overview(
        tables={table: tuple(statuses[run] for run in dict.fromkeys(runs)) for table, runs in tables.items()},
        totals={state: counts[state] for state in STATES if counts[state]},
        gpu_hours=sum(status.gpu_hours for status in statuses.values()),
        expected_end=expect_end(statuses.values(), specs, now),
    )


def _remember(question: Callable[[str], bool]) -> Callable[[str], bool]:
    answers: dict[str, bool] = {}

    def ask(run: str) -> bool:
        if run not in answers:
            answers[run] = question(run)
        return answers[run]

    return ask


def expect_end(statuses: Iterable[RunStatus], specs: Mapping[str, RunSpec], now: datetime) -> datetime | None:
    """When all runs that have not failed should be done, as many going on at a time as now.

    None when nothing runs, and as long as nothing is known of how long some unfinished run takes: neither
    it nor one like it has finished an epoch.
    """
    statuses = list(statuses)
    running = [status for status in statuses if status.state == "running"]
    unfinished = [status for status in statuses if status.state not in ("done", "failed")]
    epochs = EpochTimes(statuses, specs)
    left = {status.run: _seconds_left(status, epochs) for status in unfinished}
    known = [seconds for seconds in left.values() if seconds is not None]
    if not running or len(known) < len(left):
        return None
    longest = max(left[status.run] or 0.0 for status in running)
    return now + timedelta(seconds=max(sum(known) / len(running), longest))


def _seconds_left(status: RunStatus, epochs: EpochTimes) -> float | None:
    if status.state == "running" and status.seconds_left is not None:
        return status.seconds_left
    per_epoch = status.seconds_per_epoch or epochs.typical(status.run)
    finished = max(status.epoch - 1, 0)  # the present epoch is counted whole
    return None if per_epoch is None else per_epoch * max((status.epochs or 0) - finished, 0)


class EpochTimes:
    """How long an epoch takes in runs like a given one: same dataset and networks, else same dataset."""

    def __init__(self, statuses: Iterable[RunStatus], specs: Mapping[str, RunSpec]) -> None:
        self.specs = specs
        self.known: dict[tuple[object, ...], list[float]] = {}
        for status in statuses:
            if status.seconds_per_epoch and status.run in specs:
                for likeness in _likenesses(specs[status.run]):
                    self.known.setdefault(likeness, []).append(status.seconds_per_epoch)

    def typical(self, run: str) -> float | None:
        """The median over the runs most like it; None where none of its dataset has finished an epoch."""
        spec = self.specs.get(run)
        found = (self.known.get(likeness) for likeness in _likenesses(spec)) if spec else ()
        return next((statistics.median(seconds) for seconds in found if seconds), None)


def _likenesses(spec: RunSpec) -> Iterator[tuple[object, ...]]:
    """What runs may share that says how long an epoch takes, the closest likeness first."""
    networks = spec.student.architecture, spec.teacher and spec.teacher.architecture
    yield spec.dataset.name, *networks, spec.method.name
    yield spec.dataset.name, *networks
    yield (spec.dataset.name,)


def format_duration(seconds: float | None) -> str:
    """Seconds as a person says them: 42 s, 7 min, 3 h 05, 2 d 4 h; a dash where unknown."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours < 48 else f"{hours // 24} d {hours % 24} h"

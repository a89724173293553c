"""`fbt status`: the state of every run of every table, read from files only.

Sources, all of them optional: `<runs>/<id>/{spec.json, progress.json, history.jsonl, metrics.json, log.txt}`,
written by the engine, and the journal of the Slurm executor, `.snakemake/submitit/` (see plugin/README.md).
A run's state follows from the first line of this table that fits (STATE_TABLE says the same in code):

    evidence                                                             state
    -------------------------------------------------------------------  -----------
    metrics.json is there                                                done
    a pack has left its results to be published                          queued
    its job runs, and started after the run last wrote                   running
    its job is in the queue, submitted or requeued after that            queued
    the run wrote that it failed                                         failed
    its job failed, and the run has not been started again without one   failed
    the run wrote that it was interrupted, and its job goes on           queued
    the run wrote that it was interrupted                                interrupted
    the run wrote something in the last 15 minutes                       running
    its job is in the queue                                              queued
    the run has written something, ever                                  silent
    none of these                                                        waiting
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fbt_core.run_files import (
    LOG_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    SPEC_FILE,
    as_number,
    is_ready,
    parse_time,
    printable,
    read_history,
    read_json,
    read_tail,
)
from fbt_core.spec import RunSpec
from fbt_paper.status.jobs import Job

STATES = ("running", "silent", "interrupted", "failed", "queued", "waiting", "done")
SILENT_AFTER_SECONDS = 900.0
"""A run that says `running` but wrote nothing for so long is shown as silent: killed, or its node is gone."""
CLOCKS_DIFFER_SECONDS = 60.0
"""Clocks of two machines may differ by so much; only what is newer by more counts as newer."""


@dataclass(frozen=True)
class RunStatus:
    """The state of one run and what it has reached; numbers that are not known yet are None."""

    run: str
    state: str
    name: str = field(default="", kw_only=True)
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
class Evidence:
    """What is on disk about one run: its files, its newest job, and what it still needs."""

    folder: Path
    metrics: Mapping[str, Any] | None
    progress: Mapping[str, Any]
    job: Job | None
    quiet: float | None
    """Seconds since the run last wrote; None if it never did."""
    missing: Sequence[str]
    """Runs that it needs and that are not done."""

    @property
    def updated(self) -> datetime | None:
        """When the run last wrote its progress."""
        return parse_time(self.progress.get("updated"))

    @property
    def written_state(self) -> str:
        """The state that the run itself wrote last; empty if it wrote none."""
        return str(self.progress.get("state") or "")

    @property
    def job_active(self) -> bool:
        """Whether its job is in the queue or runs."""
        return self.job is not None and self.job.active

    @property
    def job_waits(self) -> bool:
        """Whether its job is in the queue."""
        return self.job is not None and self.job.active and self.job.state != "RUNNING"

    @property
    def job_is_newer(self) -> bool:
        """Whether its job was submitted or started after the run last wrote."""
        if self.job is None or not self.job.active:
            return False
        return not self.progress or (
            self.job.begun is not None
            and self.updated is not None
            and self.job.begun > self.updated.timestamp()
        )

    @property
    def job_failed(self) -> bool:
        """Whether its job failed, and the run has not written well after that: it was not started again."""
        if self.job is None or not self.job.failed:
            return False
        if self.job.ended is None or self.updated is None:
            return True
        return self.updated.timestamp() <= self.job.ended + CLOCKS_DIFFER_SECONDS


def failed_before(evidence: Evidence) -> list[str]:
    """What the run wrote when it failed, now that a newer job is at it."""
    if evidence.written_state != "failed":
        return []
    return [f"failed before: {evidence.progress.get('error') or ''}"]


def starting_note(evidence: Evidence) -> str:
    """Of a job that runs and whose run has not written yet."""
    return "; ".join(["starting", *failed_before(evidence)])


def queue_note(evidence: Evidence) -> str:
    """Why the job waits, in Slurm's word, else what is known of it."""
    reason = evidence.job.reason if evidence.job else ""
    if not reason and evidence.written_state == "interrupted":
        reason = "saved, requeued"
    if not reason and evidence.job and not evidence.progress:
        reason = evidence.job.state.lower()
    return "; ".join([reason or "requeued", *failed_before(evidence)])


def job_failure_note(evidence: Evidence) -> str:
    """Why the job failed, and which if the run's own progress does not say it."""
    assert evidence.job is not None
    reason = evidence.job.reason or evidence.job.state
    return f"job {evidence.job.job}: {reason}" if evidence.progress else reason


def missing_note(evidence: Evidence) -> str:
    """The runs that it waits for."""
    if not evidence.missing:
        return "not started"
    return f"needs {', '.join(map(without_dataset, evidence.missing))}"


STATE_TABLE: tuple[tuple[Callable[[Evidence], bool], str, Callable[[Evidence], str]], ...] = (
    (lambda e: e.metrics is not None, "done", lambda e: ""),
    (lambda e: is_ready(e.folder), "queued", lambda e: "trained; snakemake publishes it"),
    (lambda e: e.job_is_newer and not e.job_waits, "running", starting_note),
    (lambda e: e.job_is_newer, "queued", queue_note),
    (lambda e: e.written_state == "failed", "failed", lambda e: str(e.progress.get("error") or "")),
    (lambda e: e.job_failed, "failed", job_failure_note),
    (lambda e: e.written_state == "interrupted" and e.job_active, "queued", lambda e: "saved, requeued"),
    (
        lambda e: e.written_state == "interrupted",
        "interrupted",
        lambda e: "saved; the next call of snakemake goes on",
    ),
    (
        lambda e: e.quiet is not None and e.quiet <= SILENT_AFTER_SECONDS,
        "running",
        lambda e: "" if e.progress else "starting",
    ),
    (lambda e: e.job_waits, "queued", queue_note),
    (lambda e: e.quiet is not None, "silent", lambda e: f"wrote nothing for {format_duration(e.quiet)}"),
    (lambda e: True, "waiting", missing_note),
)
"""(evidence, state, note): the first whose evidence is there gives a run's state."""


def collect_evidence(
    folder: Path, spec: RunSpec | None, job: Job | None, done: Callable[[str], bool], now: datetime
) -> Evidence:
    """Read the files of one run, as few as its state takes."""
    # Metrics first: a run that is done needs no other file.
    metrics = read_json(folder / METRICS_FILE)
    progress: Mapping[str, Any] = {}
    if metrics is None:
        progress = read_json(folder / PROGRESS_FILE) or {}
    # The spec is the first file that a run writes; until its first progress that file's time is all there is.
    quiet = None
    if progress:
        updated = parse_time(progress.get("updated"))
        quiet = (now - updated).total_seconds() if updated else 0.0
    elif (folder / SPEC_FILE).exists():
        quiet = (now - datetime.fromtimestamp((folder / SPEC_FILE).stat().st_mtime, UTC)).total_seconds()
    missing: list[str] = []
    # Asked only for a run that has not begun: others have what they need.
    if spec is not None and metrics is None and quiet is None:
        missing = [run for run in spec.needed_runs() if not done(run)]
    return Evidence(folder, metrics, progress, job, quiet, missing)


def judge(evidence: Evidence) -> tuple[str, str]:
    """State and note of a run: the first line of STATE_TABLE that fits."""
    return next((state, note(evidence)) for fits, state, note in STATE_TABLE if fits(evidence))


def observe_run(
    folder: Path, spec: RunSpec | None, job: Job | None, done: Callable[[str], bool], now: datetime
) -> RunStatus:
    """The state of the run of one folder, and what it has reached and cost."""
    evidence = collect_evidence(folder, spec, job, done, now)
    state, note = judge(evidence)
    status = RunStatus(folder.name, state, note=printable(note), epochs=spec.recipe.epochs if spec else None)

    # What it has reached: from its metrics if it is done, else from progress and history.
    if evidence.metrics is not None:
        status = reached_at_end(status, evidence.metrics)
    elif evidence.progress:
        status = reached_so_far(status, evidence.progress, read_history(folder))
    if evidence.metrics is None and job is not None:
        status = replace(status, job=printable(job.job))

    # Why it failed: the log of the job if that failed, else the run's own.
    if state == "failed":
        log, lines = failure_log(folder, job if evidence.written_state != "failed" else None)
        status = replace(status, log=printable(log), last_lines=lines)
    return add_costs(status, evidence.metrics or {}, job)


def reached_at_end(status: RunStatus, metrics: Mapping[str, Any]) -> RunStatus:
    """Scores and speed of a run that is done."""
    history = metrics.get("history") or []
    return replace(
        status,
        epoch=len(history),
        epochs=len(history),
        top1=as_number((metrics.get("last") or {}).get("top1")),
        best_top1=as_number((metrics.get("best") or {}).get("top1")),
        images_per_second=as_number(metrics.get("images_per_second")),
        seconds_per_epoch=epoch_seconds(history),
    )


def reached_so_far(
    status: RunStatus, progress: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> RunStatus:
    """Epoch, scores and speed of a run that is not done."""
    # The speed of a run that has stopped is no speed.
    running = status.state == "running"
    return replace(
        status,
        epoch=int(as_number(progress.get("epoch")) or 0),
        epochs=int(as_number(progress.get("epochs")) or 0) or None,
        top1=latest_top1(history),
        best_top1=as_number(progress.get("best_top1")),
        images_per_second=as_number(progress.get("images_per_second")) if running else None,
        # Before the first epoch ends the engine knows its steps, but not how long an evaluation takes.
        seconds_left=as_number(progress.get("seconds_left")) if history else None,
        seconds_per_epoch=epoch_seconds(history),
        restarts=int(as_number(progress.get("attempt")) or 0),
    )


def add_costs(status: RunStatus, metrics: Mapping[str, Any], job: Job | None) -> RunStatus:
    """The status with what the run has cost so far, by its metrics or its job, whichever says more."""
    execution = metrics.get("execution") or {}

    def largest(key: str, source: Mapping[str, Any]) -> float:
        known = (as_number(source.get(key)) or 0.0, getattr(status, key), getattr(job, key, 0.0))
        return max(map(float, known))

    return replace(
        status,
        restarts=int(largest("restarts", execution)),
        queue_wait_s=largest("queue_wait_s", execution),
        gpu_hours=largest("gpu_hours", execution),
        peak_memory_mb=largest("peak_memory_mb", metrics),
    )


def failure_log(folder: Path, job: Job | None) -> tuple[str, tuple[str, ...]]:
    """The log that shows a failure, and its last lines: that of the failed job, else the run's."""
    run_log = folder / LOG_FILE
    paths = [run_log]
    # The job's log first: what kills a job from outside writes there, not into the run's.
    if job is not None and job.log:
        paths.insert(0, Path(job.log))
    for path in paths:
        if lines := read_tail(path):
            return str(path), lines
    if len(paths) > 1 or run_log.exists():
        return str(paths[0]), ()
    return "", ()


def latest_top1(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The top-1 of the last epoch that was evaluated; a recipe may leave epochs out."""
    known = [top1 for epoch in history if (top1 := as_number(epoch.get("top1"))) is not None]
    return known[-1] if known else None


def epoch_seconds(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Median seconds from one epoch's end to the next, evaluation included; those of training at least."""
    training = [as_number(epoch.get("seconds")) for epoch in history]
    whole = []
    for first, second in zip(history, history[1:], strict=False):
        start, end = parse_time(first.get("finished")), parse_time(second.get("finished"))
        if start and end and first.get("attempt") == second.get("attempt"):  # no restart between them
            whole.append((end - start).total_seconds())
    # The larger of the two medians: training alone leaves out the evaluation that follows.
    known = [[seconds for seconds in training if seconds is not None], whole]
    return max((statistics.median(seconds) for seconds in known if seconds), default=None)


def without_dataset(run: str) -> str:
    """A run id without its first part: short, and still enough for `fbt show`."""
    return run.partition("-")[2] or run


def format_duration(seconds: float | None) -> str:
    """Seconds as a person says them: 42 s, 7 min, 3 h 05, 2 d 4 h; a dash if unknown."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d}"
    return f"{hours // 24} d {hours % 24} h"

"""The journal of the Slurm executor, read for `fbt status`: which job holds which run, and how it fares.

The executor keeps one JSON file per job in `.snakemake/submitit/journal/` (fields: the executor's journal.py)
and each job a record of its own starts on its node: the newer of the two while no head process runs. Only
files are read: no squeue, no sacct, so this works with a dead head process and from any login shell.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fbt_paper.status.run_folder import Record, number, read_json
from fbt_paper.status.states import JobRecord


def read_jobs(folder: Path) -> dict[str, JobRecord]:
    """The newest job of every run that the journal knows, by run id; empty where there is no journal."""
    entries = (read_json(path) for path in sorted((folder / "journal").glob("*.json")))
    newest: dict[str, Record] = {}
    for entry in entries:
        run = _run_of(entry) if entry else None
        if entry and run and _submitted(entry) >= _submitted(newest.get(run, {})):
            newest[run] = entry
    return {run: _to_job(entry) for run, entry in newest.items()}


def _run_of(entry: Record) -> str | None:
    """The run whose training the job holds: its wildcard `run`."""
    wildcards = entry.get("wildcards")
    run = wildcards.get("run") if isinstance(wildcards, dict) else None
    return run if isinstance(run, str) else None


def _submitted(entry: Record) -> float:
    return number(entry.get("submitted")) or 0.0


def _to_job(entry: Record) -> JobRecord:
    own = read_json(Path(str(entry["record"]))) if entry.get("record") else None
    return JobRecord(
        job=str(entry.get("job_id") or ""),
        state=_newest_state(str(entry.get("state") or ""), own),
        reason=str(entry.get("message") or entry.get("reason") or "").strip(),
        restarts=max(int(number(entry.get("restarts")) or 0), len((own or {}).get("starts") or []) - 1),
        log=_first_file([entry.get("error_log"), entry.get("log")]),
        queue_wait_s=_largest(entry.get("queue_wait_s"), (own or {}).get("queue_wait_s")),
        gpu_hours=number(entry.get("gpu_hours")) or 0.0,
        peak_memory_mb=_largest(entry.get("peak_memory_mb"), (own or {}).get("peak_memory_mb")),
        begun=_largest(entry.get("submitted"), entry.get("started"), *_starts(own)) or None,
        ended=number((own or {}).get("ended")) or number(entry.get("ended")),
    )


def _newest_state(state: str, own: Record | None) -> str:
    """What the job itself noted at its end beats a journal that nobody has kept since."""
    if state not in ("SUBMITTING", "PENDING", "RUNNING") or own is None:
        return state
    if own.get("ended") is not None:
        return "COMPLETED" if own.get("exit_code") == 0 else "FAILED"
    return state


def _starts(own: Record | None) -> list[object]:
    """When the job was started, as it noted itself, every start."""
    starts = (own or {}).get("starts") or []
    return [start.get("time") if isinstance(start, dict) else start for start in starts]


def _largest(*values: object) -> float:
    return max((found for found in map(number, values) if found is not None), default=0.0)


def _first_file(paths: Iterable[object]) -> str:
    """The first of these logs that holds something; else the first that is named."""
    named = [Path(str(path)) for path in paths if path]
    written = [path for path in named if path.is_file() and path.stat().st_size]
    return str((written or named)[0]) if named else ""

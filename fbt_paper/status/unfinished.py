"""How the runs stand that are not finished, in a few words each: what partial tables show in their cells."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fbt_paper.plan.packs import JOURNAL
from fbt_paper.plan.runs import Plan
from fbt_paper.status.jobs import newest_jobs
from fbt_paper.status.overview import observe_tables
from fbt_paper.status.states import RunStatus, format_duration


def describe_unfinished(plan: Plan, folder: Path, runs: Iterable[str]) -> dict[str, str]:
    """Of the runs that are not done: run -> how it stands."""
    jobs = newest_jobs(JOURNAL)
    overview = observe_tables(folder, {"": tuple(runs)}, plan.runs, jobs, datetime.now(UTC))
    return {status.run: describe(status) for status in overview.tables[""] if status.state != "done"}


def describe(status: RunStatus) -> str:
    """`epoch 120/300, 3 h 05 left`; a failed run says so, one that has not begun `waiting`."""
    reached = f"epoch {status.epoch}/{status.epochs}" if status.epoch else ""
    parts = [status.state, reached]
    if status.state == "running":
        parts = [reached or "starting"]
        if status.seconds_left is not None:
            parts.append(f"{format_duration(status.seconds_left)} left")
    elif status.state == "failed":
        parts = ["FAILED", reached]
    return ", ".join(filter(None, parts))

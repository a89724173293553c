"""All tables with the states of their runs, as `fbt status` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fbt_core.run_files import METRICS_FILE
from fbt_core.spec import RunSpec
from fbt_paper.status.forecast import expect_end
from fbt_paper.status.jobs import Job
from fbt_paper.status.states import STATES, RunStatus, observe_run


@dataclass(frozen=True)
class Overview:
    """All tables with their runs, the totals over different runs, and when all of it should be done."""

    tables: Mapping[str, tuple[RunStatus, ...]]
    totals: Mapping[str, int]
    gpu_hours: float
    expected_end: datetime | None
    warnings: Sequence[str] = ()
    """Runs that were trained again after others had read their weights."""


def observe_tables(
    runs_folder: Path,
    tables: Mapping[str, Sequence[str]],
    specs: Mapping[str, RunSpec],
    jobs: Mapping[str, Job],
    now: datetime,
    names: Mapping[str, str] | None = None,
) -> Overview:
    """The state of all runs of the tables; a run that several tables share is read once and counted once.

    `names`: what people call each run.
    """
    known: dict[str, bool] = {}

    def done(run: str) -> bool:
        if run not in known:
            known[run] = (runs_folder / run / METRICS_FILE).exists()
        return known[run]

    statuses = {
        run: replace(
            observe_run(runs_folder / run, specs.get(run), jobs.get(run), done, now),
            name=(names or {}).get(run, ""),
        )
        for run in dict.fromkeys(run for runs in tables.values() for run in runs)
    }
    counts = Counter(status.state for status in statuses.values())
    return Overview(
        tables={table: tuple(statuses[run] for run in dict.fromkeys(runs)) for table, runs in tables.items()},
        totals={state: counts[state] for state in STATES if counts[state]},
        gpu_hours=sum(status.gpu_hours for status in statuses.values()),
        expected_end=expect_end(statuses.values(), specs, now),
    )

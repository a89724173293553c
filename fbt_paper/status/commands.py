"""What `fbt status`, `fbt show` and `fbt diff` do: they read files only, and never import torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from fbt_core.errors import UserError
from fbt_core.run_files import METRICS_FILE, SPEC_FILE, read_history, read_json
from fbt_core.spec import ID_PATTERN
from fbt_paper.config.load import CONFIG_FOLDER
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.names import name_cells, run_names
from fbt_paper.plan.on_disk import awaited, describe_outdated
from fbt_paper.plan.packs import JOURNAL
from fbt_paper.plan.runs import Plan
from fbt_paper.plan.targets import Flow
from fbt_paper.status import show
from fbt_paper.status.jobs import newest_jobs
from fbt_paper.status.overview import Overview, observe_tables
from fbt_paper.status.show_status import render_overview

WIDTH_OF_A_FILE = 180
HOME = CONFIG_FOLDER.absolute().parent


def show_status(
    flow: Flow,
    names: Sequence[str],
    each_run: bool = False,
    watch: float | None = None,
    as_json: bool = False,
) -> int:
    """Print the state of every run of the tables; `watch`: again every so many seconds.

    Exit code 1 if a run has failed, so that scripts can ask.
    """
    planned, title = choose_tables(flow.plan, names), f"scale {flow.scale}, {results_folder(flow)}"
    if not names:
        # `snakemake` trains these too: without them all tables could be done while it still goes on.
        planned |= figure_runs(flow, planned)
    each_run, called, folder = each_run or bool(names), run_names(flow.plan), Path(flow.runs)

    def look() -> Overview:
        # Read anew at each look, like the runs: with --watch, jobs start and end meanwhile.
        jobs = newest_jobs(JOURNAL)
        # Not those that were deleted after all that read them had finished: nothing waits for them.
        tables = {name: awaited(flow.plan, runs, folder) for name, runs in planned.items()}
        overview = observe_tables(folder, tables, flow.plan.runs, jobs, datetime.now(UTC), called)
        every = dict.fromkeys(run for runs in tables.values() for run in runs)
        return replace(overview, warnings=describe_outdated(flow.plan, every, folder))

    overview = look()
    if as_json:
        print(json.dumps(as_values(overview), indent=1))
    else:
        if watch is not None:
            overview = watch_tables(overview, look, title, each_run, watch)
        console = new_console()
        console.print(render_overview(overview, title, each_run, console.width))
    return 1 if overview.totals.get("failed") else 0


def results_folder(flow: Flow) -> str:
    """The folder of the results; a UserError if the workflow is not called from here."""
    if Path(flow.results).is_dir():
        return flow.results
    # Before the first run there is no folder yet; everywhere else it is the wrong working directory.
    if Path("Snakefile").exists():
        return f"{flow.results} is not there yet"
    example = "`fbt init FOLDER` makes one"
    if (HOME / "Snakefile").exists():
        example = f"e.g. {HOME}"
    hint = f"call `fbt` from the folder that `snakemake` is called from, {example}"
    raise UserError("there are no results here", where=str(Path(flow.results).absolute()), hint=hint)


def choose_tables(plan: Plan, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Tables and the runs each shows; without names: those of `all`."""
    unknown = [name for name in names if name not in plan.tables]
    if unknown:
        raise UserError(f"unknown table '{unknown[0]}'", given=unknown[0], choices=plan.tables)
    chosen = names or [name for name in plan.all_tables if plan.tables[name].runs]
    return {name: plan.tables[name].runs for name in chosen}


def figure_runs(flow: Flow, tables: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Runs that only figures need, as one more group; empty if the tables have them all."""
    figures = FigurePlan(flow)
    drawn = [run for name in figures.drawn("index") for run in figures.drawings[name].runs]
    shown = flow.plan.needed(run for runs in tables.values() for run in runs)
    rest = tuple(dict.fromkeys(run for run in drawn if run not in shown))
    return {"figures": rest} if rest else {}


def watch_tables(
    overview: Overview, look: Callable[[], Overview], title: str, each_run: bool, seconds: float
) -> Overview:
    """Draw a screen again and again until all is done or Ctrl-C; returns what was seen last."""
    console = new_console()
    # Transient: the last screen goes, because the whole overview is printed after it.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while set(overview.totals) - {"done"}:
                # Asked for each screen: the window may change its size. One line less, or it scrolls.
                size, stamp = console.size, f"{title}, {datetime.now():%H:%M:%S} (Ctrl-C ends)"
                screen = render_overview(overview, stamp, each_run, size.width, size.height - 1)
                live.update(screen, refresh=True)
                time.sleep(max(seconds, 0.5))
                overview = look()
        # Ctrl-C is how watching ends, not an error: what was seen last is still printed.
        except KeyboardInterrupt:
            live.update("", refresh=True)
    return overview


def as_values(overview: Overview) -> dict[str, Any]:
    """An overview as plain JSON values."""
    end = overview.expected_end
    return {
        "tables": {name: [run.__dict__ for run in runs] for name, runs in overview.tables.items()},
        "totals": dict(overview.totals),
        "gpu_hours": overview.gpu_hours,
        "expected_end": end.isoformat() if end else None,
        "warnings": list(overview.warnings),
    }


def show_run(flow: Flow, name: str) -> int:
    """Print spec, history and result of one run, finished or only planned; of several, the scores of each."""
    runs = [read_run(flow, run) for run in show.find_runs(name, known_runs(flow), name_cells(flow.plan))]
    console = new_console()
    if len(runs) == 1:
        console.print(show.render_run(runs[0]))
    else:
        console.print(show.render_several(runs, run_names(flow.plan)))
    return 0


def show_difference(flow: Flow, first: str, second: str) -> int:
    """Print every setting in which two runs or two cells differ, then their scores and the gap."""
    known, cells = known_runs(flow), name_cells(flow.plan)
    sides = [[read_run(flow, run) for run in show.find_runs(name, known, cells)] for name in (first, second)]
    new_console().print(show.render_difference(sides[0], sides[1]))
    return 0


def known_runs(flow: Flow) -> list[str]:
    """Planned runs, and runs on disk that the plan no longer holds."""
    # A run stays on disk after the plan has changed, and can still be looked at.
    on_disk = [path.parent.name for path in sorted(Path(flow.runs).glob(f"*/{SPEC_FILE}"))]
    return [*flow.plan.runs, *(run for run in on_disk if ID_PATTERN.fullmatch(run))]


def read_run(flow: Flow, run: str) -> show.ShownRun:
    """What is known of a run: its spec (planned or on disk), its epochs, and its metrics if it is done."""
    folder = Path(flow.runs, run)
    metrics = read_json(folder / METRICS_FILE)
    if run in flow.plan.runs:
        spec = flow.plan.runs[run].model_dump(mode="json")
    else:
        spec = read_json(folder / SPEC_FILE) or {}
    return show.ShownRun(
        run=run,
        spec=spec,
        history=(metrics or {}).get("history") or read_history(folder),
        metrics=metrics,
    )


def new_console() -> Console:
    """The terminal; into a file or a pipe lines are not folded at 80 characters."""
    console = Console(highlight=False)
    # Without a terminal rich takes 80 columns and would fold lines that a script reads.
    if console.is_terminal:
        return console
    return Console(highlight=False, width=WIDTH_OF_A_FILE)

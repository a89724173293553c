"""What `fbt status`, `fbt show` and `fbt diff` do: they read files only, and never import torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fbt_core.errors import UserError
from fbt_core.spec import RunSpec
from fbt_paper.config.load import CONFIG_FOLDER
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.runs import Plan
from fbt_paper.plan.targets import Flow
from fbt_paper.status import show
from fbt_paper.status.journal import read_jobs
from fbt_paper.status.run_folder import Record, read_history, read_json
from fbt_paper.status.show_status import render_overview
from fbt_paper.status.states import Overview, observe_tables

WIDTH_OF_A_FILE = 180
JOURNAL = Path(".snakemake/submitit")
HOME = CONFIG_FOLDER.absolute().parent


def show_status(
    flow: Flow,
    names: Sequence[str],
    each_run: bool = False,
    watch: float | None = None,
    as_json: bool = False,
) -> int:
    """Print where every run of the tables stands; `watch`: again every so many seconds.

    Exit code 1 where a run has failed, so that scripts can ask.
    """
    tables, title = choose_tables(flow.plan, names), f"scale {flow.scale}, {describe_place(flow)}"
    tables |= {} if names else figure_runs(flow, tables)
    each_run = each_run or bool(names)

    def look() -> Overview:
        return observe_tables(Path(flow.runs), tables, flow.plan.runs, read_jobs(JOURNAL), datetime.now(UTC))

    if as_json:
        print(json.dumps(as_record(overview := look()), indent=1))
    elif watch is not None:
        overview = _watch(look, title, each_run, watch)
    else:
        console = _console()
        console.print(render_overview(overview := look(), title, each_run, console.width))
    return 1 if overview.totals.get("failed") else 0


def describe_place(flow: Flow) -> str:
    """The folder of the results; a UserError where this is no folder that the workflow is called from."""
    if Path(flow.results).is_dir():
        return flow.results
    if Path("Snakefile").exists():
        return f"{flow.results} is not there yet"
    hint = f"call `fbt` from the folder that `snakemake` is called from, e.g. {HOME}"
    raise UserError("there are no results here", where=str(Path(flow.results).absolute()), hint=hint)


def choose_tables(plan: Plan, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Tables and the runs each needs (teachers, earlier phases too); without names: those of `all`."""
    unknown = [name for name in names if name not in plan.tables]
    if unknown:
        raise UserError(f"unknown table '{unknown[0]}'", given=unknown[0], choices=plan.tables)
    chosen = names or [name for name in plan.all_tables if plan.tables[name].runs]
    return {name: plan.needed(plan.tables[name].runs) for name in chosen}


def figure_runs(flow: Flow, tables: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Runs that only figures need, as one more group; nothing where the tables have them all."""
    figures = FigurePlan(flow)
    needed = flow.plan.needed(run for name in figures.drawn("index") for run in figures.drawings[name].runs)
    shown = {run for runs in tables.values() for run in runs}
    own = tuple(run for run in needed if run not in shown)
    return {"figures": own} if own else {}


def _watch(look: Callable[[], Overview], title: str, each_run: bool, seconds: float) -> Overview:
    """A screen that is drawn again and again; at the end, all there is to say is left on the terminal."""
    overview, console = look(), _console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while set(overview.totals) - {"done"}:
                size = console.size
                shown = render_overview(overview, _stamped(title), each_run, size.width, size.height - 1)
                live.update(shown, refresh=True)
                time.sleep(max(seconds, 0.5))
                overview = look()
        except KeyboardInterrupt:
            live.update("", refresh=True)
    console.print(render_overview(overview, title, each_run, console.width))
    return overview


def _stamped(title: str) -> str:
    return f"{title}, {datetime.now():%H:%M:%S} (Ctrl-C ends)"


def as_record(overview: Overview) -> Record:
    """An overview as plain JSON values."""
    end = overview.expected_end
    return {
        "tables": {name: [run.__dict__ for run in runs] for name, runs in overview.tables.items()},
        "totals": dict(overview.totals),
        "gpu_hours": overview.gpu_hours,
        "expected_end": end.isoformat() if end else None,
    }


def show_run(flow: Flow, name: str) -> int:
    """Print spec, history and result of one run, finished or only planned."""
    known, runs = known_runs(flow), Path(flow.runs)
    run = show.find_run(name, known, show.name_cells(flow.plan))
    metrics = read_json(runs / run / "metrics.json")
    history = (metrics or {}).get("history") or read_history(runs / run)
    _console().print(show.render_run(run, _spec_of(run, known, runs), history, metrics))
    return 0


def show_difference(flow: Flow, first: str, second: str) -> int:
    """Print every setting in which two runs differ, then their scores and the gap."""
    known, runs = known_runs(flow), Path(flow.runs)
    sides = []
    cells = show.name_cells(flow.plan)
    for run in (show.find_run(name, known, cells) for name in (first, second)):
        sides.append((run, _spec_of(run, known, runs), read_json(runs / run / "metrics.json")))
    _console().print(show.render_difference(sides[0], sides[1]))
    return 0


def known_runs(flow: Flow) -> Mapping[str, RunSpec | None]:
    """Planned runs, and runs on disk that the plan no longer holds (None in place of their spec)."""
    on_disk = {path.parent.name: None for path in sorted(Path(flow.runs).glob("*/spec.json"))}
    return {**on_disk, **flow.plan.runs}


def _spec_of(run: str, known: Mapping[str, RunSpec | None], runs: Path) -> Record:
    spec = known[run]
    return spec.model_dump(mode="json") if spec else read_json(runs / run / "spec.json") or {}


def _console() -> Console:
    """The terminal; into a file or a pipe lines are not folded at 80 characters."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_OF_A_FILE)

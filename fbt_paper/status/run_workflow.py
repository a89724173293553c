"""`fbt run`: start Snakemake for tables, rows or cells, and show how far it is with one bar."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fbt_core.errors import UserError
from fbt_core.run_files import METRICS_FILE, read_tail
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.names import name_cells, run_names
from fbt_paper.plan.packs import JOURNAL
from fbt_paper.plan.targets import Flow
from fbt_paper.status.commands import new_console, results_folder
from fbt_paper.status.jobs import newest_jobs
from fbt_paper.status.overview import Overview, observe_tables
from fbt_paper.status.show import find_runs
from fbt_paper.status.states import format_duration

LOCKS = Path(".snakemake/locks")
LOOK_SECONDS = 1.0


def run_workflow(flow: Flow, names: Sequence[str], options: Sequence[str]) -> int:
    """Train what these tables, rows, cells or runs need and rebuild what shows them; Snakemake's exit code.

    Without names: all that `snakemake` builds. `options` go to Snakemake, e.g. --cores 2.
    """
    results_folder(flow)
    refuse_second_workflow()
    targets, runs = what_to_build(flow, names)
    log = Path(flow.results, "logs", "fbt_run.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        # One group with this process: Ctrl-C reaches Snakemake, which ends its jobs as it always does.
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *targets, *options, *given(flow)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        with handing_on_signals(process) as received:
            watch(flow, runs, process, received)
    if received:
        # As shells report it: a script that calls this sees that it was stopped, not that a run failed.
        print("stopped: what was training has saved its state, and the same command goes on from there")
        return 128 + received[0]
    report(flow, names, runs, process.returncode, log)
    return 1 if process.returncode else 0


@contextmanager
def handing_on_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """While it lasts, SIGTERM and SIGHUP to this process end Snakemake and its trainings as Ctrl-C does.

    Gives the list of the signals received so far.
    """
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        # Snakemake first, so that it starts nothing in place of what ends. It does not signal its jobs.
        process.terminate()
        for training in trainings_below(process.pid):
            training.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trainings_below(pid: int) -> list[psutil.Process]:
    """The processes of the engine that this one has started; of a run on several GPUs the first alone."""
    try:
        below = {child.pid: child for child in psutil.Process(pid).children(recursive=True)}
        engine = {key for key, child in below.items() if "fbt_core." in " ".join(child.cmdline())}
        # A shell names the engine in its command line as well, and is only waiting for it.
        engine -= {key for key in engine if Path(below[key].exe()).name in ("bash", "sh", "dash")}
        return [below[key] for key in engine if below[key].ppid() not in engine]
    except psutil.NoSuchProcess:  # ended meanwhile
        return []


def refuse_second_workflow() -> None:
    """Raise UserError while another Snakemake works in this folder."""
    # Snakemake would say the same, but only after it has planned everything.
    if LOCKS.is_dir() and any(LOCKS.iterdir()):
        hint = "`fbt status` shows how far it is; if none runs, `snakemake --unlock` frees the folder"
        raise UserError("a workflow holds this folder's lock", where=str(LOCKS), hint=hint)


def what_to_build(flow: Flow, names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Snakemake's targets for these names, and the runs that they need; no targets: all there is."""
    plan = flow.plan
    if not names:
        figures = FigurePlan(flow)
        drawn = [run for name in figures.drawn("index") for run in figures.drawings[name].runs]
        shown = [run for key in plan.all_tables for run in plan.tables[key].runs]
        return [], plan.needed([*shown, *drawn])
    chosen: dict[str, None] = {}
    for name in names:
        if name not in plan.tables or plan.tables[name].runs:
            chosen.update(dict.fromkeys(find_runs(name, plan.runs, name_cells(plan))))
    files = dict.fromkeys(file for run in chosen for file in flow.run_files(run))
    tables = [key for key in plan.tables if key in names or is_filled(flow, key, tuple(chosen))]
    files.update(dict.fromkeys(flow.table_files(tables)))
    files.update(dict.fromkeys(sweep_plots(flow, tables)))
    return list(files), plan.needed(chosen)


def sweep_plots(flow: Flow, tables: Sequence[str]) -> list[str]:
    """The line plots of these tables' sweeps."""
    figures = FigurePlan(flow)
    chosen = [name for name in figures.names("sweeps") if figures.drawings[name].table in tables]
    return [f"{figures.folder}/{name}.png" for name in chosen]


def is_filled(flow: Flow, key: str, chosen: Sequence[str]) -> bool:
    """Whether a table shows one of these runs and lacks no other: it can be built once they are done."""
    runs = flow.plan.tables[key].runs
    others = [run for run in runs if run not in chosen]
    return len(others) < len(runs) and all(Path(flow.runs, run, METRICS_FILE).exists() for run in others)


def given(flow: Flow) -> list[str]:
    """The scale and the settings of the command line as Snakemake's --config."""
    # The scale always: --config replaces the list in a profile, which may name another.
    settings = {"scale": flow.scale, **flow.changes}
    return ["--config", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]


# ---------------------------------------------------------------- what is shown


def watch(flow: Flow, runs: Sequence[str], process: subprocess.Popen[bytes], received: list[int]) -> None:
    """One bar until Snakemake ends: runs done, time left, what is training; in a pipe a line per run.

    Ctrl-C is noted in `received`.
    """
    console = new_console()
    # Once: names follow from the plan, and the loop looks every second.
    names = run_names(flow.plan)
    known = done_of(look(flow, runs, names))
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("planning", total=len(runs), completed=len(known))
        while process.poll() is None:
            try:
                time.sleep(LOOK_SECONDS)
                overview = look(flow, runs, names)
            # Snakemake has received it as well: wait for it to end its jobs, so that nothing is left behind.
            except KeyboardInterrupt:
                received.append(signal.SIGINT)
                bar.update(task, description="stopping: the trainings save their state")
                continue
            done = done_of(overview)
            bar.update(task, completed=len(done), description=describe(overview))
            if not console.is_terminal:
                for name in done.keys() - known.keys():
                    print(f"{len(done)}/{len(runs)} {name}: {done[name]}", flush=True)
            known = done


def done_of(overview: Overview) -> dict[str, str]:
    """The finished runs by name, with their best top-1."""
    runs = [status for status in overview.tables["runs"] if status.state == "done"]
    return {status.name: "-" if status.best_top1 is None else f"{status.best_top1:.2f} %" for status in runs}


def look(flow: Flow, runs: Sequence[str], names: Mapping[str, str]) -> Overview:
    """The state of these runs now; `names` are the plan's."""
    jobs = newest_jobs(JOURNAL)
    return observe_tables(
        Path(flow.runs), {"runs": tuple(runs)}, flow.plan.runs, jobs, datetime.now(UTC), names
    )


def describe(overview: Overview) -> str:
    """Time left and what is training."""
    running = [status for status in overview.tables["runs"] if status.state == "running"]
    left, end = "", overview.expected_end
    if end:
        left = f"{format_duration((end - datetime.now(UTC)).total_seconds())} left"
    texts = [f"{status.name} (epoch {status.epoch}/{status.epochs})" for status in running[:3]]
    more = [f"and {len(running) - 3} more"] if len(running) > 3 else []
    return "; ".join(filter(None, [left, *texts, *more])) or "tables and figures"


def report(flow: Flow, names: Sequence[str], runs: Sequence[str], code: int, log: Path) -> None:
    """Why it failed; or what was built: the tables asked for, of everything Table 2, claims and page."""
    if code:
        overview = look(flow, runs, run_names(flow.plan))
        failed = [status for status in overview.tables["runs"] if status.state == "failed"]
        for status in failed:
            print(f"{status.name} failed: {status.note}")
        if not failed:
            print("\n".join(read_tail(log, lines=40)))
        print(f"Snakemake ended with {code}; all that it printed: {log}")
        return
    # Imported only here: pandas is slow to load, and a failed run has no table.
    from fbt_paper.status.show_table import print_table

    shown: list[str] = []
    for name in dict.fromkeys(name.partition("/")[0] for name in names or flow.plan.all_tables[:1]):
        if Path(flow.results, "tables", f"{name}.csv").exists():
            print_table(flow, name)
            shown += sweep_plots(flow, [name])
    for path in shown:
        print(path)
    print(f"{len(runs)} runs are done.")
    claims, page = Path(flow.results, "claims.csv"), Path(flow.results, "index.html")
    if not names and claims.exists():
        verdicts = Counter(line["verdict"] for line in csv.DictReader(claims.open()))
        print("Claims of the paper:", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    if not names:
        print(f"Everything on one page: {page.absolute().as_uri()}")

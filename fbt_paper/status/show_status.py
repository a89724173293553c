"""How `fbt status` looks on a terminal: totals and failures first, then a line per table and per run.

Everything is built of lines that fit the width, so that a caller may ask for no more than a screen of them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fbt_paper.status.overview import Overview
from fbt_paper.status.states import STATES, RunStatus, format_duration, without_dataset

STYLES = {
    "running": "bold cyan",
    "silent": "bold yellow",
    "interrupted": "yellow",
    "failed": "bold red",
    "queued": "blue",
    "waiting": "dim",
    "done": "green",
}
MARKS = {
    "running": ">",
    "silent": "?",
    "interrupted": "|",
    "failed": "x",
    "queued": "~",
    "waiting": ".",
    "done": "+",
}
MOVING = ("failed", "running", "silent", "interrupted", "queued")
INDENT = "    "
WIDE = 180


@dataclass(frozen=True)
class Column:
    """A column of the runs: its heading, what it says of a run, and how soon it gives way (0: never)."""

    heading: str
    say: Callable[[RunStatus], str]
    gives_way: int
    right: bool = True


COLUMNS = (
    Column("run", lambda status: without_dataset(status.run), 0, right=False),
    Column("what it is", lambda status: status.name or "-", 3, right=False),
    Column("state", lambda status: f"{MARKS[status.state]} {status.state}", 0, right=False),
    Column("epoch", lambda status: "-" if status.epochs is None else f"{status.epoch}/{status.epochs}", 0),
    Column("best", lambda status: percent(status.best_top1), 2),
    Column("left", lambda s: format_duration(s.seconds_left if s.state == "running" else None), 1),
    Column("images/s", lambda s: f"{s.images_per_second:,.0f}" if s.images_per_second else "-", 4),
    Column("requeued", lambda status: f"{status.restarts}x" if status.restarts else "-", 5),
    Column("top-1", lambda status: percent(status.top1), 6),
    Column("GPU h", lambda status: f"{status.gpu_hours:.1f}" if status.gpu_hours else "-", 7),
    Column("in queue", lambda status: format_duration(status.queue_wait_s or None), 8),
    Column("peak MB", lambda s: f"{s.peak_memory_mb:,.0f}" if s.peak_memory_mb else "-", 9),
)


def render_overview(
    overview: Overview, title: str, each_run: bool, width: int = WIDE, height: int | None = None
) -> RenderableType:
    """The whole picture, in lines of at most `width`; with `height`, no more lines, the most urgent first."""
    top = [*fold(title, width, style="bold"), *total_lines(overview, width)]
    failed = runs_in(overview, ("failed",))
    # Printed once, everything is shown: a terminal scrolls, and a file keeps it.
    if height is None:
        failures = [line for status in failed for line in failure_lines(status, width)]
        return Group(*top, *failures, *table_lines(overview, width), *all_runs(overview, each_run, width))

    # A screen: failures get at most half of what the totals leave, tables give way to the runs that move.
    failures = few_failures(failed, width, max(2, (height - len(top)) // 2))
    tables = table_lines(overview, width)
    room = height - len(top) - len(failures)
    if room - len(tables) < min(4, len(runs_in(overview, MOVING)) + 1):
        tables = []
    runs = runs_in(overview, [state for state in (STATES if each_run else MOVING) if state != "failed"])
    return Group(*top, *failures, *tables, *capped_runs(runs, width, room - len(tables)))


def runs_in(overview: Overview, states: Sequence[str]) -> tuple[RunStatus, ...]:
    """Every run in one of these states, once, by state and name."""
    statuses = {status.run: status for runs in overview.tables.values() for status in runs}
    chosen = [status for status in statuses.values() if status.state in states]
    return tuple(sorted(chosen, key=lambda status: (states.index(status.state), status.run)))


# ---------------------------------------------------------------- totals


def total_lines(overview: Overview, width: int) -> list[Text]:
    """How many runs are in which state, what they have cost, and when all should be done."""
    counts = ", ".join(f"{count} {state}" for state, count in overview.totals.items())
    totals = f"{sum(overview.totals.values())} runs: {counts or 'none planned'}"
    if overview.gpu_hours:
        totals += f"; {overview.gpu_hours:,.1f} GPU hours used"
    lines = [*fold(totals, width, style="bold"), *fold(end_sentence(overview), width)]
    for warning in overview.warnings:
        lines += fold(f"Warning: {warning}.", width, style="yellow")
    return lines


def end_sentence(overview: Overview) -> str:
    """When all runs should be done, or why nobody can know; what to do if nothing runs."""
    counts = overview.totals
    if set(counts) == {"done"}:
        return "All done."
    if overview.expected_end is not None:
        end = overview.expected_end.astimezone().strftime("%a %d %b %Y %H:%M")
        without = "; without the failed" if counts.get("failed") else ""
        return f"Expected end {end}, if as many runs go on at a time as now{without}."
    if counts.get("running"):
        return "Under way; the expected end is known once every kind of run has finished an epoch."
    if counts.get("failed"):
        return "Nothing is running; fix the failed runs, then call snakemake again."
    return "Nothing is running; `snakemake --cores 2` (or --profile slurm) starts what is missing."


# ---------------------------------------------------------------- failures


def failure_lines(status: RunStatus, width: int, last_lines: int = 5) -> list[Text]:
    """The run, why it failed, the last lines of its log, and which file the log is."""
    name = f" ({status.name})" if status.name else ""
    reason = f"{status.run}{name} failed" + (f": {status.note}" if status.note else "")
    tail = status.last_lines[-last_lines:] if last_lines else ()
    lines = [part for line in tail for part in fold(line, width, INDENT, "dim")[:2]]
    return [
        Text(""),
        *fold(reason, width, style=STYLES["failed"]),
        *lines,
        *fold(f"log: {status.log or 'none was written'}", width, INDENT),
    ]


def few_failures(failed: Sequence[RunStatus], width: int, room: int) -> list[Text]:
    """As many failures as fit into `room` lines, with fewer of their last lines; how many are left out."""
    lines: list[Text] = []
    for index, status in enumerate(failed):
        # Why runs fail matters more than the log's end: first fewer lines of it, then fewer runs.
        new = failure_lines(status, width, last_lines=2 if len(failed) == 1 else 1)[1:]
        if len(lines) + len(new) >= room:
            new = failure_lines(status, width, last_lines=0)[1:]
        if lines and len(lines) + len(new) >= room:
            more = f"and {len(failed) - index} more failed; `fbt status` without --watch lists them"
            return [*lines, *fold(more, width, style=STYLES["failed"])[:1]]
        lines += new
    return lines


# ---------------------------------------------------------------- tables and runs


def table_lines(overview: Overview, width: int) -> list[Text]:
    """A line for each table: how many of its runs are in which state."""
    shown = [state for state in STATES if overview.totals.get(state)]
    grid = new_grid(width)
    grid.add_column("table")
    for heading in ("runs", *shown):
        grid.add_column(heading, justify="right")
    for name, runs in overview.tables.items():
        counts = Counter(status.state for status in runs)
        cells = [Text(str(counts[s]), STYLES[s]) if counts[s] else Text("-", "dim") for s in shown]
        grid.add_row(Text(name), str(len(runs)), *cells)
    return [Text(""), *as_lines(grid, width)]


def all_runs(overview: Overview, each_run: bool, width: int) -> list[Text]:
    """The runs of each table, or only those that have begun and are not done."""
    groups = overview.tables
    if not each_run:
        groups = {"under way": runs_in(overview, MOVING)}
    lines: list[Text] = []
    for name, runs in groups.items():
        if runs:
            lines += [Text(""), Text(name, style="bold")]
            lines += [line for block in run_blocks(runs, width) for line in block]
    return lines


def run_blocks(runs: Sequence[RunStatus], width: int) -> list[list[Text]]:
    """The headings, then for each run its line and, if there is something to note, a line below it."""
    columns = fitting_columns(runs, width)
    headings, *lines = as_lines(runs_grid(columns, runs, width), width)
    shown = {column.heading for column in columns}
    notes = [fold(run_note(status, shown), width, INDENT, "dim") for status in runs]
    return [[headings], *([line, *note] for line, note in zip(lines, notes, strict=True))]


def capped_runs(runs: Sequence[RunStatus], width: int, room: int) -> list[Text]:
    """The lines of the runs that fit into `room`, and how many are left out."""
    if not runs or room < 3:
        return []
    blocks = [[Text("")], *run_blocks(runs, width)]
    if sum(map(len, blocks)) <= room:
        return [line for block in blocks for line in block]
    lines: list[Text] = []
    for index, block in enumerate(blocks):
        # A run and its note stay together; one line is kept for what is left out.
        if len(lines) + len(block) >= room:
            return [*lines, Text(f"and {len(blocks) - index} more runs", style="dim")]
        lines += block
    return lines


def fitting_columns(runs: Sequence[RunStatus], width: int) -> list[Column]:
    """Run, state and epoch always; of the others that say something, the most important that fit."""
    columns = [c for c in COLUMNS if not c.gives_way or any(c.say(status) != "-" for status in runs)]
    # Measured on a wide console: on the real one rich would first shrink the columns to fit.
    console = Console(width=10_000)
    while any(column.gives_way for column in columns):
        size = Measurement.get(console, console.options, runs_grid(columns, runs, width))
        if size.maximum <= width:
            break
        columns.remove(max(columns, key=lambda column: column.gives_way))
    return columns


def runs_grid(columns: Sequence[Column], runs: Sequence[RunStatus], width: int) -> Table:
    """A row for each run."""
    grid = new_grid(width)
    for column in columns:
        grid.add_column(column.heading, justify="right" if column.right else "left")
    for status in runs:
        styles = [STYLES[status.state] if column.heading == "state" else "" for column in columns]
        grid.add_row(*(Text(c.say(status), style) for c, style in zip(columns, styles, strict=True)))
    return grid


def run_note(status: RunStatus, shown: Iterable[str]) -> str:
    """The job, why it waits or what it needs; how often it was requeued if that column had no room."""
    parts = []
    if status.job and status.job not in status.note:
        parts.append(f"job {status.job}")
    if status.restarts and "requeued" not in shown:
        parts.append(f"requeued {status.restarts}x")
    if status.note and status.state != "failed":
        parts.append(status.note)
    return "; ".join(parts)


def percent(value: float | None) -> str:
    """A score, or a dash."""
    return "-" if value is None else f"{value:.2f}"


# ---------------------------------------------------------------- lines


def new_grid(width: int) -> Table:
    """A table without lines; columns stand closer on a narrow terminal."""
    gap = 1 if width < 100 else 2
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="underline")


def as_lines(grid: Table, width: int) -> list[Text]:
    """A grid as one line for its headings and one for each row, cut at the terminal's end."""
    for column in grid.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    # Rendered with colours whatever stdout is: the lines are cut and put together before they are printed.
    console = Console(width=width, color_system="standard", force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    lines = [Text.from_ansi(line) for line in capture.get().splitlines()]
    for line in lines:
        line.rstrip()
    return lines


def fold(text: str, width: int, indent: str = "", style: str = "") -> list[Text]:
    """A text on as many lines as it needs; nothing of it is lost, so that paths can be copied."""
    room = max(10, width - len(indent))
    # Not at hyphens: a run's id is copied whole.
    parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=True)
    return [Text(indent).append(part, style=style) for part in parts]

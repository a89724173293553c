"""How `fbt status` looks on a terminal: totals and failures first, then a line per table and per run.

Everything is built of lines that fit the width, so that a caller may ask for no more than a screen of them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from fbt_paper.status.states import STATES, Overview, RunStatus, format_duration, without_dataset

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
    Column("state", lambda status: f"{MARKS[status.state]} {status.state}", 0, right=False),
    Column("epoch", lambda status: _epochs(status), 0),
    Column("best", lambda status: _percent(status.best_top1), 2),
    Column("left", lambda status: format_duration(_left(status)), 1),
    Column("images/s", lambda s: f"{s.images_per_second:,.0f}" if s.images_per_second else "-", 3),
    Column("requeued", lambda status: f"{status.restarts}x" if status.restarts else "-", 4),
    Column("top-1", lambda status: _percent(status.top1), 5),
    Column("GPU h", lambda status: f"{status.gpu_hours:.1f}" if status.gpu_hours else "-", 6),
    Column("in queue", lambda status: format_duration(status.queue_wait_s or None), 7),
    Column("peak MB", lambda s: f"{s.peak_memory_mb:,.0f}" if s.peak_memory_mb else "-", 8),
)


def render_overview(
    overview: Overview, title: str, each_run: bool, width: int = WIDE, height: int | None = None
) -> RenderableType:
    """The whole picture, in lines of at most `width`; with `height`, the most telling lines of it."""
    head = [*_fold(title, width, style="bold"), *_total_lines(overview, width)]
    failed = _distinct(overview, ("failed",))
    if height is None:
        failures = [line for status in failed for line in _failure_lines(status, width)]
        return Group(*head, *failures, *_table_lines(overview, width), *_all_runs(overview, each_run, width))
    failures = _few_failures(failed, width, max(2, (height - len(head)) // 2))
    tables = _table_lines(overview, width)
    room = height - len(head) - len(failures)
    tables = tables if room - len(tables) >= min(4, len(_distinct(overview, MOVING)) + 1) else []
    runs = _distinct(overview, [state for state in (STATES if each_run else MOVING) if state != "failed"])
    return Group(*head, *failures, *tables, *_capped_runs(runs, width, room - len(tables)))


def _distinct(overview: Overview, states: Sequence[str]) -> tuple[RunStatus, ...]:
    found = {
        status.run: status for runs in overview.tables.values() for status in runs if status.state in states
    }
    return tuple(sorted(found.values(), key=lambda status: (states.index(status.state), status.run)))


# ---------------------------------------------------------------- totals


def _total_lines(overview: Overview, width: int) -> list[Text]:
    total = sum(overview.totals.values())
    parts = [f"{count} {state}" for state, count in overview.totals.items()]
    said = f"{total} runs: {', '.join(parts) or 'none planned'}"
    said += f"; {overview.gpu_hours:,.1f} GPU hours used" if overview.gpu_hours else ""
    return [*_fold(said, width, style="bold"), *_fold(_say_end(overview), width)]


def _say_end(overview: Overview) -> str:
    counts = overview.totals
    if set(counts) == {"done"}:
        return "All done."
    if overview.expected_end is not None:
        without = "; without the failed" if counts.get("failed") else ""
        end = _say_time(overview.expected_end)
        return f"Expected end {end}, if as many runs go on at a time as now{without}."
    if counts.get("running"):
        return "Under way; the expected end is told once every kind of run has finished an epoch."
    if counts.get("failed"):
        return "Nothing is running; fix the failed runs, then call snakemake again."
    return "Nothing is running; `snakemake --cores 2` (or --profile slurm) starts what is missing."


def _say_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%a %d %b %Y %H:%M")


# ---------------------------------------------------------------- failures


def _failure_lines(status: RunStatus, width: int, last_lines: int = 5) -> list[Text]:
    """The run, why it failed, the last lines of its log, and where the log is."""
    said = f"{status.run} failed" + (f": {status.note}" if status.note else "")
    tail = status.last_lines[-last_lines:] if last_lines else ()
    lines = [part for line in tail for part in _fold(line, width, INDENT, "dim")[:2]]
    return [
        Text(""),
        *_fold(said, width, style=STYLES["failed"]),
        *lines,
        *_fold(f"log: {status.log or 'none was written'}", width, INDENT),
    ]


def _few_failures(failed: Sequence[RunStatus], width: int, room: int) -> list[Text]:
    """As many failures as fit into `room` lines, with fewer of their last lines; how many are left out."""
    lines: list[Text] = []
    for place, status in enumerate(failed):
        new = _failure_lines(status, width, last_lines=2 if len(failed) == 1 else 1)[1:]
        new = new if len(lines) + len(new) < room else _failure_lines(status, width, last_lines=0)[1:]
        if lines and len(lines) + len(new) >= room:
            more = f"and {len(failed) - place} more failed; `fbt status` without --watch lists them"
            return [*lines, *_fold(more, width, style=STYLES["failed"])[:1]]
        lines += new
    return lines


# ---------------------------------------------------------------- tables and runs


def _table_lines(overview: Overview, width: int) -> list[Text]:
    shown = [state for state in STATES if overview.totals.get(state)]
    rows: list[list[Text]] = []
    for name, runs in overview.tables.items():
        counts = Counter(status.state for status in runs)
        cells = [_coloured(str(counts[state]) if counts[state] else "-", state) for state in shown]
        rows.append([Text(name), Text(str(len(runs))), *cells])
    return [Text(""), *_grid(["table", "runs", *shown], rows, [False, True, *(True for _ in shown)], width)]


def _coloured(text: str, state: str) -> Text:
    return Text(text, style=STYLES[state] if text != "-" else "dim")


def _all_runs(overview: Overview, each_run: bool, width: int) -> list[Text]:
    groups = overview.tables if each_run else {"under way": _distinct(overview, MOVING)}
    lines: list[Text] = []
    for name, runs in groups.items():
        if runs:
            lines += [Text(""), Text(name, style="bold"), *_run_lines(runs, width)]
    return lines


def _run_lines(runs: Sequence[RunStatus], width: int) -> list[Text]:
    """A heading, and for every run its line and, where there is something to note, a line below it."""
    columns = _choose_columns(runs, width)
    rows = [[_run_cell(column, status) for column in columns] for status in runs]
    heading, *lines = _grid([c.heading for c in columns], rows, [c.right for c in columns], width)
    shown = {column.heading for column in columns}
    notes = [_fold(_note(status, shown), width, INDENT, "dim") for status in runs]
    return [heading, *(part for line, note in zip(lines, notes, strict=True) for part in (line, *note))]


def _run_cell(column: Column, status: RunStatus) -> Text:
    return Text(column.say(status), style=STYLES[status.state] if column.heading == "state" else "")


def _choose_columns(runs: Sequence[RunStatus], width: int) -> list[Column]:
    """The columns that have something to say and fit: run, state and epoch always, others by their rank."""
    gap = _gap(width)
    sizes = {c: max(len(c.heading), *(len(c.say(status)) for status in runs)) + gap for c in COLUMNS}
    telling = [c for c in COLUMNS if not c.gives_way or any(c.say(status) != "-" for status in runs)]
    kept, room = [], width + gap
    for column in sorted(telling, key=lambda column: column.gives_way):
        if column.gives_way and sizes[column] > room:
            break
        kept.append(column)
        room -= sizes[column]
    return [column for column in COLUMNS if column in kept]


def _capped_runs(runs: Sequence[RunStatus], width: int, room: int) -> list[Text]:
    """The runs' lines that fit into `room`, those that need a look first."""
    if not runs or room < 3:
        return []
    lines = [Text(""), *_run_lines(runs, width)]
    if len(lines) <= room:
        return lines
    kept = room - 1
    names = {without_dataset(status.run) for status in runs}
    left = sum(line.plain.split(" ")[0] in names for line in lines[kept:])
    return [*lines[:kept], Text(f"and {left} more runs", style="dim")]


def _note(status: RunStatus, shown: Iterable[str]) -> str:
    """The job, why it waits or what it needs; how often requeued where the column had no room."""
    job = f"job {status.job}" if status.job and status.job not in status.note else ""
    again = f"requeued {status.restarts}x" if status.restarts and "requeued" not in shown else ""
    note = "" if status.state == "failed" else status.note
    return "; ".join(part for part in (job, again, note) if part)


def _left(status: RunStatus) -> float | None:
    return status.seconds_left if status.state == "running" else None


def _epochs(status: RunStatus) -> str:
    return "-" if status.epochs is None else f"{status.epoch}/{status.epochs}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---------------------------------------------------------------- lines


def _grid(
    headings: Sequence[str], rows: Sequence[Sequence[Text]], right: Sequence[bool], width: int
) -> list[Text]:
    """A heading and rows as aligned lines; what is wider than the terminal is cut at its end."""
    sizes = [max([len(heading), *(len(row[i]) for row in rows)]) for i, heading in enumerate(headings)]
    lines = []
    for cells in [[Text(heading, style="underline") for heading in headings], *rows]:
        line = Text(no_wrap=True, overflow="ellipsis")
        for cell, size, pushed in zip(cells, sizes, right, strict=True):
            blank = " " * (size - len(cell))
            line.append(blank if pushed else "").append_text(cell).append("" if pushed else blank)
            line.append(" " * _gap(width))
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _gap(width: int) -> int:
    """Blanks between two columns."""
    return 1 if width < 100 else 2


def _fold(text: str, width: int, indent: str = "", style: str = "") -> list[Text]:
    """A text on as many lines as it needs; nothing of it is lost, so that paths can be copied."""
    room = max(10, width - len(indent))
    parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=True)
    return [Text(indent).append(part, style=style) for part in parts]

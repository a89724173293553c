"""How `fbt status` looks on a terminal: one block per table, one line per run, totals last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fbt_paper.status import STATES, Overview, RunStatus, format_duration

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


def render_overview(overview: Overview, title: str, each_run: bool) -> RenderableType:
    """The whole picture: a line per table, then (each_run) a line per run, the failures, the totals."""
    parts: list[RenderableType] = [Text(title, style="bold"), _render_tables(overview)]
    if each_run:
        parts += [_render_runs(table, runs) for table, runs in overview.tables.items()]
    else:
        moving = _distinct(overview, ("running", "silent", "interrupted", "queued", "failed"))
        parts += [_render_runs("under way", moving)] if moving else []
    parts += [_render_failure(status) for status in _distinct(overview, ("failed",))]
    return Group(*parts, _render_totals(overview))


def _distinct(overview: Overview, states: Sequence[str]) -> tuple[RunStatus, ...]:
    found = {
        status.run: status for runs in overview.tables.values() for status in runs if status.state in states
    }
    return tuple(sorted(found.values(), key=lambda status: (states.index(status.state), status.run)))


def _render_tables(overview: Overview) -> Table:
    table = _new_table("table", "runs", *STATES, numeric=("runs", *STATES))
    for name, runs in overview.tables.items():
        counts = Counter(status.state for status in runs)
        cells = [
            _colour(str(counts[state]), state) if counts[state] else Text("-", style="dim")
            for state in STATES
        ]
        table.add_row(name, str(len(runs)), *cells)
    return table


def _render_runs(name: str, runs: Sequence[RunStatus]) -> Table:
    costs = _costs(runs)
    columns = ["run", "state", "epoch", "top-1", "best", "images/s", "left", "requeued", *costs, "note"]
    table = _new_table(*columns, numeric=columns[2:-1])
    table.title, table.title_justify, table.title_style = f"\n{escape(name)}", "left", "bold"
    for status in runs:
        table.add_row(*_run_cells(status), *(say(status) for say in costs.values()), Text(_note(status)))
    return table


def _costs(runs: Sequence[RunStatus]) -> dict[str, Callable[[RunStatus], str]]:
    """Columns of what runs have cost, those alone in which some run has something to say."""
    columns: dict[str, tuple[str, Callable[[RunStatus], str]]] = {
        "in queue": ("queue_wait_s", lambda status: format_duration(status.queue_wait_s or None)),
        "GPU h": ("gpu_hours", lambda status: f"{status.gpu_hours:.1f}" if status.gpu_hours else "-"),
        "peak MB": ("peak_memory_mb", lambda s: f"{s.peak_memory_mb:,.0f}" if s.peak_memory_mb else "-"),
    }
    return {name: say for name, (key, say) in columns.items() if any(getattr(status, key) for status in runs)}


def _run_cells(status: RunStatus) -> list[RenderableType]:
    return [
        Text(status.run),
        _colour(f"{MARKS[status.state]} {status.state}", status.state),
        _epochs(status),
        _percent(status.top1),
        _percent(status.best_top1),
        f"{status.images_per_second:,.0f}" if status.images_per_second else "-",
        format_duration(status.seconds_left) if status.state == "running" else "-",
        f"{status.restarts}x" if status.restarts else "-",
    ]


def _note(status: RunStatus) -> str:
    job = f"job {status.job}" if status.job and status.job not in status.note else ""
    return "; ".join(part for part in (job, status.note) if part)


def _epochs(status: RunStatus) -> str:
    return "-" if status.epochs is None else f"{status.epoch} of {status.epochs}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _colour(text: str, state: str) -> Text:
    return Text(text, style=STYLES[state])


def _new_table(*columns: str, numeric: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numeric else "left",
            no_wrap=column not in ("note", "run"),
            overflow="fold" if column == "run" else "ellipsis",
            max_width=40 if column == "note" else None,
        )
    return table


def _render_failure(status: RunStatus) -> Text:
    text = Text(f"\n{status.run} failed", style=STYLES["failed"])
    text.append(f": {status.note}\n" if status.note else "\n", style="default")
    for line in status.last_lines:
        text.append(f"    {line}\n", style="dim")
    text.append(f"    log: {status.log or 'none was written'}", style="default")
    return text


def _render_totals(overview: Overview) -> Text:
    total = sum(overview.totals.values())
    text = Text("\n")
    parts = [f"{count} {state}" for state, count in overview.totals.items()]
    text.append(f"{total} runs: {', '.join(parts) or 'none planned'}", style="bold")
    if overview.gpu_hours:
        text.append(f"; {overview.gpu_hours:,.1f} GPU hours used")
    text.append(f"\n{_say_end(overview)}")
    return text


def _say_end(overview: Overview) -> str:
    counts = overview.totals
    if set(counts) == {"done"}:
        return "All done."
    if overview.expected_end is not None:
        return f"Expected end {_say_time(overview.expected_end)}, if as many runs go on at a time as now."
    if counts.get("running"):
        return "Under way; the expected end is told after the first epoch."
    if counts.get("failed"):
        return "Nothing is running; mend the failed runs, then call snakemake again."
    return "Nothing is running; `snakemake --cores 2` (or --profile slurm) starts what is missing."


def _say_time(moment: datetime) -> str:
    return moment.strftime("%a %d %b %Y %H:%M")

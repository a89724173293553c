"""`fbt show RUN` and `fbt diff A B`: one run's spec, history and result, or what differs between two.

Runs are named by their id, by any part of it that fits exactly one run, or by the cell they stand behind:
table/row/column, as in the page's links.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fbt_core.errors import UserError, close_matches
from fbt_core.run_files import as_number
from fbt_paper.status.states import format_duration

TERMS_ACROSS = 5
EPOCH_COLUMNS = {
    "lr": "lr",
    "loss": "loss",
    "top1": "top-1",
    "top5": "top-5",
    "top1_ema": "EMA",
    "test_loss": "test loss",
    "seconds": "seconds",
    "images_per_second": "images/s",
}


@dataclass(frozen=True)
class ShownRun:
    """One run as it is shown: its id, spec, finished epochs, and its metrics if it is done."""

    run: str
    spec: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any] | None


def find_runs(name: str, known: Iterable[str], cells: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The run whose id is or contains `name`, or all runs behind a table, table/row or table/row/column.

    Raises UserError with the nearest names if none fits, or several ids contain the name.
    """
    ids = sorted(set(known))
    if name in ids:
        return (name,)
    behind = [run for cell, runs in cells.items() if f"{cell}/".startswith(f"{name}/") for run in runs]
    if behind:
        return tuple(dict.fromkeys(behind))
    fitting = [run for run in ids if name in run]
    if len(fitting) == 1:
        return (fitting[0],)
    if fitting:
        raise UserError(f"{name!r} fits {len(fitting)} runs; name one of them: {listed(fitting)}")
    # A slash is in no id, so a cell was meant.
    matches = close_matches(name, cells if "/" in name else ids, count=5)
    hint = "`fbt plan --runs` lists all of them"
    if matches:
        hint = f"nearest: {listed(matches)}"
    raise UserError(f"no run is called {name!r} ({len(ids)} known); {hint}")


def find_run(name: str, known: Iterable[str], cells: Mapping[str, Sequence[str]]) -> str:
    """The one run of this name; a UserError if several runs stand behind it."""
    runs = find_runs(name, known, cells)
    if len(runs) > 1:
        raise UserError(f"{name!r} has {len(runs)} runs; name one: {listed(runs)}")
    return runs[0]


def listed(ids: Sequence[str], at_most: int = 8) -> str:
    """The first of the ids, and how many more there are."""
    more = f" and {len(ids) - at_most} more" if len(ids) > at_most else ""
    return ", ".join(ids[:at_most]) + more


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted path, value) pairs; lists and scalars are values."""
    for key, value in content.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path)
        else:
            yield path, value


def compare_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(path, first's value, second's value) wherever two nested settings differ; None: no such path."""
    left, right = dict(flatten(first)), dict(flatten(second))
    # In the order of the spec, and both sides: a setting may be in one of them only.
    paths = list(dict.fromkeys([*left, *right]))
    return [(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)]


def scores(metrics: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The scores of a run that people compare: best, last and EMA top-1, time and speed."""
    metrics = metrics or {}
    return {
        "best top-1": as_number((metrics.get("best") or {}).get("top1")),
        "best epoch": as_number((metrics.get("best") or {}).get("epoch")),
        "last top-1": as_number((metrics.get("last") or {}).get("top1")),
        "EMA top-1": as_number((metrics.get("ema") or {}).get("top1")),
        "seconds": as_number(metrics.get("seconds")),
        "images/s": as_number(metrics.get("images_per_second")),
    }


def render_run(run: ShownRun) -> RenderableType:
    """One run on a terminal: its spec by section, its epochs, its result and where it was made."""
    settings = new_table(["setting", "value"])
    for path, value in flatten(run.spec):
        # As Text: rich reads brackets in a plain string as markup, and lists are written with them.
        settings.add_row(path, Text(as_text(value)))
    parts: list[RenderableType] = [Text(run.run, style="bold"), settings]
    if run.history:
        parts += render_history(run.history)
    else:
        parts.append(Text("No epoch is finished yet.\n"))
    if run.metrics:
        parts.append(render_result(run.metrics))
    else:
        parts.append(Text("Not done: no metrics.json."))
    return Group(*parts)


def render_history(history: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Scores by epoch, then the loss terms by epoch, a few to a table so that 80 columns hold them."""
    # Only what some epoch has: 80 columns hold no empty ones.
    shown = {key: name for key, name in EPOCH_COLUMNS.items() if any(as_number(e.get(key)) for e in history)}
    table = new_table(["epoch", *shown.values()])
    for epoch in history:
        table.add_row(str(epoch["epoch"]), *(number_text(epoch.get(key)) for key in shown))
    tables = [table]
    terms = list(dict.fromkeys(term for epoch in history for term in epoch.get("terms") or {}))
    for start in range(0, len(terms), TERMS_ACROSS):
        group = terms[start : start + TERMS_ACROSS]
        table = new_table(["epoch", *(term.replace("_", " ") for term in group)])
        for epoch in history:
            values = epoch.get("terms") or {}
            table.add_row(str(epoch["epoch"]), *(number_text(values.get(term)) for term in group))
        tables.append(table)
    return tables


def render_result(metrics: Mapping[str, Any]) -> Table:
    """Scores, and how and where the run was made."""
    table = new_table(["result", "value"])
    for name, value in scores(metrics).items():
        table.add_row(name, format_duration(value) if name == "seconds" else number_text(value))
    for path, value in flatten({key: metrics.get(key) or {} for key in ("execution", "provenance")}):
        if value not in (None, {}):
            table.add_row(path, Text(as_text(value)))
    return table


def render_several(runs: Sequence[ShownRun], names: Mapping[str, str]) -> RenderableType:
    """The scores of several runs, one a line, and over all of them their mean and sample deviation."""
    shown = [scores(run.metrics) for run in runs]
    used = [name for name in scores(None) if any(line[name] is not None for line in shown)]
    table = new_table(["run", "what it is", *used])
    for run, line in zip(runs, shown, strict=True):
        table.add_row(run.run, names.get(run.run, "-"), *(number_text(line[name]) for name in used))
    table.add_section()
    table.add_row("mean ± deviation", f"{len(runs)} runs", *(mean_text(shown, name) for name in used))
    return table


def mean_text(shown: Sequence[Mapping[str, float | None]], name: str) -> str:
    """The mean of a score over runs, from two runs on with its sample deviation; a dash if none is known."""
    values = [value for line in shown if (value := line[name]) is not None]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{number_text(statistics.fmean(values))}{deviation}"


def render_difference(first: Sequence[ShownRun], second: Sequence[ShownRun]) -> RenderableType:
    """What differs between two runs, or between the seeds of two cells: settings, scores and their gap.

    With several seeds scores are means, and the settings are those of each cell's first seed.
    """
    titles = [_title_of(side) for side in (first, second)]
    settings = new_table(["setting", *titles])
    for path, left, right in compare_settings(first[0].spec, second[0].spec):
        settings.add_row(path, Text(as_text(left)), Text(as_text(right)))
    table = new_table(["score", *titles, "second - first"])
    sides = [[scores(run.metrics) for run in side] for side in (first, second)]
    for name in scores(None):
        means = [_mean(side, name) for side in sides]
        if means == [None, None]:
            continue
        texts = [mean_text(side, name) for side in sides]
        known = means[0] is not None and means[1] is not None
        table.add_row(name, *texts, f"{means[1] - means[0]:+.2f}" if known else "-")  # type: ignore[operator]
    return Group(settings if settings.row_count else Text("The specs are the same.\n"), table)


def _title_of(side: Sequence[ShownRun]) -> str:
    if len(side) == 1:
        return side[0].run
    return f"{side[0].run} and {len(side) - 1} more, mean"


def _mean(side: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    values = [value for line in side if (value := line[name]) is not None]
    return statistics.fmean(values) if values else None


def new_table(columns: Sequence[str]) -> Table:
    """A table whose first column is never broken; what the others have no room for goes on below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table


def as_text(value: object) -> str:
    """A setting's value; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(item) for item in value)
    return str(value)


def number_text(value: object) -> str:
    """A number with four digits or two decimals; a dash for anything else."""
    number = as_number(value)
    if number is None:
        return "-"
    return f"{number:.4g}" if abs(number) < 10 else f"{number:.2f}"

"""`fbt show RUN` and `fbt diff A B`: one run's spec, history and result, or what differs between two.

Runs are named by their id, by any part of it that fits exactly one run, or by the cell they stand behind:
table/row/column, as in the page's links.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fbt_core.errors import UserError, close_matches
from fbt_paper.plan.runs import Plan
from fbt_paper.status.run_folder import Record, number
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


def find_run(name: str, known: Iterable[str], cells: Mapping[str, Sequence[str]] | None = None) -> str:
    """The one run whose id is or contains `name`, or that stands behind the cell `name` (table/row/column).

    Raises UserError with the nearest names where none or several fit.
    """
    ids, cells = sorted(set(known)), cells or {}
    fitting = [run for run in ids if name == run] or [run for run in ids if name in run]
    fitting = fitting or list(cells.get(name, ()))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"{name!r} fits {len(fitting)} runs; name one of them: {_listed(fitting)}")
    matches = close_matches(name, cells if "/" in name else ids, count=5)
    hint = f"nearest: {_listed(matches)}" if matches else "`fbt plan --runs` lists all of them"
    raise UserError(f"no run is called {name!r} ({len(ids)} known); {hint}")


def name_cells(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The runs behind every cell, by table/row/column."""
    return {
        f"{key}/{row}/{column}": cell.runs
        for key, table in plan.tables.items()
        for (row, column), cell in table.cells.items()
    }


def _listed(ids: Sequence[str], at_most: int = 8) -> str:
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


def compare_records(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(path, first's value, second's value) wherever two nested records differ; None: no such path."""
    left, right = dict(flatten(first)), dict(flatten(second))
    paths = list(dict.fromkeys([*left, *right]))
    return [(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)]


def scores(metrics: Record | None) -> dict[str, float | None]:
    """The scores of a run that people compare: best, last and EMA top-1, time and speed."""
    metrics = metrics or {}
    return {
        "best top-1": number((metrics.get("best") or {}).get("top1")),
        "best epoch": number((metrics.get("best") or {}).get("epoch")),
        "last top-1": number((metrics.get("last") or {}).get("top1")),
        "EMA top-1": number((metrics.get("ema") or {}).get("top1")),
        "seconds": number(metrics.get("seconds")),
        "images/s": number(metrics.get("images_per_second")),
    }


def render_run(run: str, spec: Record, history: Sequence[Record], metrics: Record | None) -> RenderableType:
    """One run on a terminal: its spec by section, its epochs, its result and where it was made."""
    parts: list[RenderableType] = [Text(run, style="bold"), _render_spec(spec)]
    parts += [_render_history(history)] if history else [Text("No epoch is finished yet.\n")]
    parts += [_render_result(metrics)] if metrics else [Text("Not done: no metrics.json.")]
    return Group(*parts)


def _render_spec(spec: Record) -> Table:
    table = _new_table("setting", "value")
    for path, value in flatten(spec):
        table.add_row(path, Text(_say(value)))
    return table


def _render_history(history: Sequence[Record]) -> RenderableType:
    """Scores by epoch, then the loss terms by epoch, a few to a table so that 80 columns hold them."""
    terms = list(dict.fromkeys(term for record in history for term in record.get("terms") or {}))
    groups = [terms[start : start + TERMS_ACROSS] for start in range(0, len(terms), TERMS_ACROSS)]
    return Group(_render_epochs(history), *(_render_terms(history, group) for group in groups))


def _render_epochs(history: Sequence[Record]) -> Table:
    shown = {key: name for key, name in EPOCH_COLUMNS.items() if any(number(r.get(key)) for r in history)}
    table = _new_table("epoch", *shown.values())
    for record in history:
        table.add_row(str(record["epoch"]), *(_say_number(record.get(key)) for key in shown))
    return table


def _render_terms(history: Sequence[Record], terms: Sequence[str]) -> Table:
    table = _new_table("epoch", *(term.replace("_", " ") for term in terms))
    for record in history:
        values = record.get("terms") or {}
        table.add_row(str(record["epoch"]), *(_say_number(values.get(term)) for term in terms))
    return table


def _render_result(metrics: Record) -> Table:
    table = _new_table("result", "value")
    for name, value in scores(metrics).items():
        table.add_row(name, format_duration(value) if name == "seconds" else _say_number(value))
    for path, value in flatten({key: metrics.get(key) or {} for key in ("execution", "provenance")}):
        if value not in (None, {}):
            table.add_row(path, Text(_say(value)))
    return table


def render_difference(
    first: tuple[str, Record, Record | None], second: tuple[str, Record, Record | None]
) -> RenderableType:
    """What differs between two runs (id, spec, metrics each): every setting, then scores and their gap."""
    differences = compare_records(first[1], second[1])
    table = _new_table("setting", first[0], second[0])
    for path, left, right in differences:
        table.add_row(path, Text(_say(left)), Text(_say(right)))
    same = Text("The specs are the same.\n")
    return Group(table if differences else same, _render_scores(first, second))


def _render_scores(
    first: tuple[str, Record, Record | None], second: tuple[str, Record, Record | None]
) -> Table:
    table = _new_table("score", first[0], second[0], "second - first")
    left, right = scores(first[2]), scores(second[2])
    for name in left:
        a, b = left[name], right[name]
        if a is None and b is None:
            continue
        table.add_row(
            name, _say_number(a), _say_number(b), f"{b - a:+.2f}" if a is not None and b is not None else "-"
        )
    return table


def _new_table(*columns: str) -> Table:
    """A table whose first column is never broken; what the others have no room for goes on below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    return table


def _say(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(_say(item) for item in value)
    return str(value)


def _say_number(value: object) -> str:
    value = number(value)
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"

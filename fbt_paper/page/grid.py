"""The grids on the page: a matrix of pairs x methods that fits the screen, and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fbt_paper.config.load import Config
from fbt_paper.config.records import AccuracyTable
from fbt_paper.plan.runs import Plan
from fbt_paper.tables.frame import TableResults
from fbt_paper.tables.leads import LEADS, TIED, methods_side_by_side
from fbt_paper.tables.outcomes import compare_means, read_cell

Record = dict[str, Any]
FIRST = ("fbt", "scratch", "")
"""Methods that stand beside the names, in this order; without a method: the teacher."""
FEWEST = 7
"""A table with at least so many methods side by side is a matrix."""


def is_matrix(entry: object) -> bool:
    """Whether a table is shown as a matrix: many methods, one per column."""
    return isinstance(entry, AccuracyTable) and methods_side_by_side(entry) and len(entry.columns) >= FEWEST


def group_columns(config: Config, entry: AccuracyTable) -> list[tuple[str, list[int]]]:
    """Indices of the columns in the matrix's order, by what the methods transfer: (heading, indices)."""
    methods = [line.method or "" for line in entry.columns]
    groups: dict[str, list[int]] = {"": [methods.index(name) for name in FIRST if name in methods]}
    for index, method in enumerate(methods):
        if method not in FIRST:
            groups.setdefault(config.methods[method].transfers, []).append(index)
    return list(groups.items())


def summarise(config: Config, plan: Plan, table: TableResults, runs: Path) -> list[Record]:
    """Per method the mean gain over the same recipe without a teacher, its interval, how often it leads."""
    entry = config.tables[table.key]
    assert isinstance(entry, AccuracyTable) and entry.gain is not None
    lines = []
    for line in entry.columns:
        if line.measure == "teacher" or line.key == entry.gain.over:
            continue
        pairs = [row.key for row in entry.rows if _measured(table, row.key, (line.key, entry.gain.over))]
        marks = [table.leads.get((row.key, line.key)) for row in entry.rows]
        lines.append(
            {
                "label": line.label,
                "pairs": len(pairs),
                "leads": marks.count(LEADS),
                "tied": marks.count(TIED),
                "printed": _printed(table, entry, line.key),
                **_mean_gain(plan, table.key, pairs, (line.key, entry.gain.over), runs),
            }
        )
    return sorted(lines, key=lambda line: -line["mean"] if line["mean"] is not None else 1e9)


def _measured(table: TableResults, row: str, columns: Sequence[str]) -> bool:
    cells = table.cells
    return all((row, column) in cells.index and cells.seeds[row, column] > 0 for column in columns)


def _mean_gain(
    plan: Plan, table: str, pairs: Sequence[str], columns: tuple[str, str], runs: Path
) -> dict[str, float | None]:
    if not pairs:
        return {"mean": None, "low": None, "high": None}
    outcomes = [[read_cell(plan, runs, f"{table}/{pair}/{column}") for column in columns] for pair in pairs]
    measured = compare_means([(better, than) for better, than in outcomes])
    low, high = measured.interval()
    return {"mean": measured.mean, "low": low, "high": high}


def _printed(table: TableResults, entry: AccuracyTable, column: str) -> float | None:
    """The average gain that the paper prints for a method."""
    assert entry.gain is not None
    cell = (entry.gain.key, column)
    printed = table.cells.printed.get(cell)
    return None if printed is None or pd.isna(printed) else float(printed)

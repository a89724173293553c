"""Which cell of each pair leads beyond noise, and which cannot be separated from the best.

The best is the one whose shown number is the largest. It leads if its difference to each other cell of the
pair has a 95 % interval above 0 (fbt_paper/tables/statistics.py: last epoch, paired by seed and test image);
no correction is needed, as it must lead all of them. Otherwise it is tied with those it does not lead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fbt_paper.config.load import Config
from fbt_paper.config.records import AccuracyTable
from fbt_paper.plan.runs import Plan
from fbt_paper.tables.frame import Cell, TableResults
from fbt_paper.tables.outcomes import compare, read_cell

LEADS, TIED = "leads", "tied"


def methods_side_by_side(table: AccuracyTable) -> bool:
    """Whether the columns are methods (the grids) and each row is a pair; else each column is a pair."""
    return any(line.method for line in table.columns)


def find_leads(config: Config, plan: Plan, table: TableResults, runs: Path) -> dict[Cell, str]:
    """`leads` or `tied` for the best cells of each pair; the others are not in it."""
    entry = config.tables[table.key]
    assert isinstance(entry, AccuracyTable)
    return {
        cell: mark
        for group in _competitors(entry, table)
        for cell, mark in _of_pair(group, table, plan, runs)
    }


def _competitors(entry: AccuracyTable, table: TableResults) -> Iterator[list[Cell]]:
    """For each pair the cells that compete: students that are measured."""
    # A teacher's own accuracy does not compete with what its students reach.
    rows = [line.key for line in entry.rows if line.measure != "teacher"]
    columns = [line.key for line in entry.columns if line.measure != "teacher"]
    if methods_side_by_side(entry):
        groups = [[(row, column) for column in columns] for row in rows]
    else:
        groups = [[(row, column) for row in rows] for column in columns]
    measured = table.cells[table.cells.seeds > 0].index
    yield from ([cell for cell in group if cell in measured] for group in groups)


def _of_pair(
    group: Sequence[Cell], table: TableResults, plan: Plan, runs: Path
) -> Iterator[tuple[Cell, str]]:
    if len(group) < 2:
        return
    best = max(group, key=lambda cell: table.cells["mean"][cell])
    outcomes = {cell: read_cell(plan, runs, "/".join((table.key, *cell))) for cell in group}
    tied = [
        cell for cell in group if cell != best and compare(outcomes[best], outcomes[cell]).interval()[0] <= 0
    ]
    yield best, TIED if tied else LEADS
    yield from ((cell, TIED) for cell in tied)

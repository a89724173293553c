"""comparison.md: every cell ours | paper | gap, over all tables."""

from __future__ import annotations

from collections.abc import Sequence

from fbt_paper.tables.collect import SCORES, Collected
from fbt_paper.tables.cost_table import UNITS, CostLine, Costs
from fbt_paper.tables.reference import legend
from fbt_paper.tables.render import (
    SMOKE_LABEL,
    escape_markdown,
    markdown_table,
    measured,
    printed,
    signed,
)

FULL_SIZE = (
    "Counted at full size, so these are no smoke numbers. Ours is counted by the paper's rule; the table "
    "itself holds the true counts too."
)
HEAD = ("Row", "Column", "Ours", "Paper", "Gap", "Seeds")


def to_markdown(tables: Sequence[Collected | Costs], scale: str) -> str:
    """The whole comparison; at smoke it says first that its numbers are not the paper's."""
    title = "# Measured and printed" + (" (SMOKE)" if scale == "smoke" else "")
    parts = [title, *([f"**{SMOKE_LABEL}**"] if scale == "smoke" else [])]
    score = next((SCORES[table.score] for table in tables if isinstance(table, Collected)), None)
    if score:
        deviation = "± is their sample standard deviation"
        parts.append(f"Ours is top-1 in % of {score}, the mean over the seeds; {deviation}.")
    for table in tables:
        parts += _costs(table) if isinstance(table, Costs) else _accuracy(table)
    return "\n\n".join(parts) + "\n"


def _accuracy(table: Collected) -> list[str]:
    label = " (SMOKE)" if table.scale == "smoke" else ""
    lines = [
        [row, column, *_cells(table, row_key, column_key)]
        for row_key, row in table.rows
        for column_key, column in table.columns
        if (row_key, column_key) in table.entries
    ]
    marks = legend({place: e.reference for place, e in table.entries.items() if e.reference})
    parts = [f"## {escape_markdown(table.title)}{label}", escape_markdown(table.caption)]
    parts += [f"> **Warning:** {escape_markdown(warning)}." for warning in table.warnings]
    return [*parts, markdown_table(HEAD, lines), *map(escape_markdown, marks), *_notes(table)]


def _cells(table: Collected, row: str, column: str) -> list[str]:
    entry = table.entry(row, column)
    return [measured(entry), printed(entry), signed(entry.gap), str(len(entry.runs) or "")]


def _notes(table: Collected) -> list[str]:
    """Remarks of the printed numbers and of cells that are not measured."""
    rows, columns = dict(table.rows), dict(table.columns)
    lines = []
    for (row, column), entry in table.entries.items():
        remarks = [entry.note] if entry.note else []
        remarks += [entry.reference.note] if entry.reference and entry.reference.note else []
        if remarks:
            lines.append(f"- {escape_markdown(f'{rows[row]}, {columns[column]}: ' + '; '.join(remarks))}")
    return ["\n".join(lines)] if lines else []


def _costs(table: Costs) -> list[str]:
    """Counted at full size at either scale; only lines that the paper prints have a gap."""
    lines = [
        [line.pair, f"{line.label}, {UNITS[what][0]}", *_cost_cells(line, what)]
        for line in table.lines
        for what in UNITS
    ]
    parts = [f"## {escape_markdown(table.title)} (full size)", FULL_SIZE, escape_markdown(table.caption)]
    parts += [markdown_table(HEAD[:-1], lines)]
    return [*parts, *(escape_markdown(f"(a) {note}") for note in table.footnotes)]


def _cost_cells(line: CostLine, what: str) -> list[str]:
    unit, paper = UNITS[what][2], line.paper.get(what)
    mark = " (a)" if line.differs(what) else ""
    printed = "" if paper is None else f"{paper:.2f} {unit}{mark}"
    return [f"{line.rule[what]:.2f} {unit}", printed, signed(line.gap(what))]

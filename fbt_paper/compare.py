"""comparison.md: every cell ours | paper | gap, over all tables."""

from __future__ import annotations

from collections.abc import Sequence

from fbt_paper.collect import Collected
from fbt_paper.cost_table import Costs
from fbt_paper.reference import legend
from fbt_paper.render import (
    COST_HEAD,
    SMOKE_LABEL,
    cost_rows,
    escape_markdown,
    markdown_table,
    measured,
    printed,
    signed,
)

HEAD = ("Row", "Column", "Ours", "Paper", "Gap", "Seeds")


def to_markdown(tables: Sequence[Collected | Costs], scale: str) -> str:
    """The whole comparison; at smoke it says first that its numbers are not the paper's."""
    title = "# Measured and printed" + (" (SMOKE)" if scale == "smoke" else "")
    parts = [title, *([f"**{SMOKE_LABEL}**"] if scale == "smoke" else [])]
    parts.append(
        "Ours is top-1 in % of the best epoch, the mean over the seeds; ± is their sample standard deviation."
    )
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
    parts = [f"## {escape_markdown(table.title)}", escape_markdown(table.caption)]
    parts += [markdown_table(COST_HEAD, cost_rows(table))]
    return [*parts, *(escape_markdown(f"(a) {note}") for note in table.footnotes)]

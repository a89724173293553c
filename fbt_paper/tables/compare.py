"""comparison.md: every cell ours | paper | gap, over all tables; no gap where numbers cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

from fbt_paper.tables.cost_table import UNITS, CostResults
from fbt_paper.tables.frame import TableResults, rows_of, score_remark
from fbt_paper.tables.reference import legend
from fbt_paper.tables.render import (
    cell_text,
    cost_cells,
    escape_markdown,
    markdown_table,
    note_of,
    printed,
    signed,
    statuses_of,
)
from fbt_paper.tables.results import Results

FULL_SIZE = (
    "Counted at full size, so these hold at every scale. Ours is counted by the paper's rule; the table "
    "itself holds the true counts too."
)
HEAD = ("Row", "Column", "Ours", "Paper")
GAINS = ("Gain", "Printed gain")
GAIN_REMARK = (
    "Gain: over the same student, trained without a teacher by the same recipe and seed; empty if that "
    "is not finished. Printed gain: over the printed accuracy from scratch."
)


def to_markdown(tables: Sequence[Results], scale_label: str) -> str:
    """The whole comparison; the label of a small scale says first that its numbers are not the paper's."""
    parts = [f"# Measured and printed{_mark(scale_label)}"]
    if scale_label:
        parts.append(f"**{scale_label}**")
    parts += list(dict.fromkeys(score_remark(t.score) for t in tables if isinstance(t, TableResults)))
    for table in tables:
        # Settings have no gap: Table 1 marks its differences itself.
        if isinstance(table, CostResults):
            parts += _costs(table)
        elif isinstance(table, TableResults):
            parts += _accuracy(table)
    return "\n\n".join(parts) + "\n"


def _mark(scale_label: str) -> str:
    """The scale's name behind a heading, if the scale has a label."""
    return f" ({scale_label.partition(':')[0]})" if scale_label else ""


def _accuracy(table: TableResults) -> list[str]:
    cells = list(rows_of(table.cells))
    lines = [
        [c.row_label, c.column_label, cell_text(c, table.leads.get(c.Index, ""), paper=False), printed(c)]
        + ([] if table.scale_label else [signed(c.gap)])
        + [str(c.seeds or ""), signed(c.gain), signed(c.printed_gain)]
        for c in cells
    ]
    notes = [f"{c.row_label}, {c.column_label}: {note_of(c)}" for c in cells if note_of(c)]
    parts = [f"## {escape_markdown(table.title)}{_mark(table.scale_label)}", escape_markdown(table.caption)]
    parts += [f"> **Warning:** {escape_markdown(warning)}." for warning in table.warnings]
    head = (*HEAD, *(() if table.scale_label else ("Gap",)), "Seeds", *GAINS)
    parts += [markdown_table(head, lines), GAIN_REMARK]
    marks = legend(statuses_of(table.cells))
    parts += [*map(escape_markdown, marks), *map(escape_markdown, table.remarks[1:])]
    if notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return parts


def _costs(table: CostResults) -> list[str]:
    """Counted at full size at every scale; only lines that the paper prints have a gap."""
    lines = []
    for line in rows_of(table.frame):
        paper, rule, _ = cost_cells(line)
        # The paper counts by its own rule, so a gap to the true counts would say nothing of ours.
        lines.append(
            [line.row_label, f"{line.label}, {UNITS[line.quantity][0]}", rule, paper, signed(line.gap)]
        )
    parts = [f"## {escape_markdown(table.title)} (full size)", FULL_SIZE, escape_markdown(table.caption)]
    return [*parts, markdown_table((*HEAD, "Gap"), lines), *map(escape_markdown, table.remarks)]

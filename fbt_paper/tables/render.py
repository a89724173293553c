"""Tables as CSV (one line per cell), Markdown and LaTeX; numbers of a small scale carry its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fbt_paper.tables.cost_table import UNITS, CostResults
from fbt_paper.tables.frame import TableResults, as_csv, rows_of
from fbt_paper.tables.recipe_table import READINGS, RecipeResults
from fbt_paper.tables.reference import STATUS_MARKS, legend
from fbt_paper.tables.results import Results

ONE_SEED = "†"
"""Behind a ± that is of one seed: the standard error of its test images."""
READING = "Each cell: measured (printed)."
COST_HEAD = ["Params (paper)", "Params (its rule)", "Params (true)"]
COST_HEAD += ["MACs (paper)", "MACs (its rule)", "MACs (true)"]


@dataclass(frozen=True)
class CellText:
    """A cell as text: ours, which is set off by `lead` (leads, tied), and what stands behind it."""

    ours: str
    rest: str = ""
    lead: str = ""

    def __str__(self) -> str:
        return f"{self.ours}{self.rest}"


@dataclass(frozen=True)
class Sheet:
    """A table as text, as Markdown, LaTeX and the page show it: a head, and lines that begin with a label."""

    caption: str
    scale_label: str
    head: Sequence[str]
    lines: Sequence[Sequence[str | CellText]]
    remarks: Sequence[str]
    warnings: Sequence[str]


def make_sheet(results: Results, paper: bool = True) -> Sheet:
    """The table with its cells as text; `paper`: with the printed numbers."""
    if isinstance(results, CostResults):
        # Of each quantity the first number is the printed one.
        shown = [i for i in range(len(COST_HEAD)) if paper or i % 3]
        head = [results.corner, "", *(COST_HEAD[i] for i in shown)]
        lines = [[*line[:2], *(line[2 + i] for i in shown)] for line in cost_lines(results)]
        return Sheet(results.caption, "", head, lines, results.remarks if paper else [], [])
    if isinstance(results, RecipeResults):
        return _recipe_sheet(results, paper)
    # By (row, column): a skipped cell has no entry and stays empty.
    texts = {
        cell.Index: cell_text(cell, results.leads.get(cell.Index, ""), paper)
        for cell in rows_of(results.cells)
    }
    return Sheet(
        caption=f"{results.caption} {READING}" if paper else results.caption,
        scale_label=results.scale_label,
        head=[results.corner, *(label for _, label in results.columns)],
        lines=[
            [label, *(texts.get((row, column), "") for column, _ in results.columns)]
            for row, label in results.rows
        ],
        remarks=[*(legend(statuses_of(results.cells)) if paper else []), *results.remarks],
        warnings=results.warnings,
    )


def _recipe_sheet(table: RecipeResults, paper: bool) -> Sheet:
    """A line per setting, both readings side by side; a difference to what is printed has a mark."""
    lines: list[list[str | CellText]] = []
    for _, group in table.frame.groupby("row", sort=False):
        cells = [
            CellText(f"{cell.ours}{table.mark(cell.source) if paper else ''}", f" ({cell.printed})" * paper)
            for cell in rows_of(group)
        ]
        lines.append([group.row_label.iloc[0], *cells])
    first = table.frame[table.frame.row == table.frame.row.iloc[0]]
    head = [f"{READINGS[cell.reading]}: {cell.column_label}" for cell in rows_of(first)]
    remarks = table.remarks if paper else []
    return Sheet(table.caption, "", [table.corner, *head], lines, remarks, [])


# ---------------------------------------------------------------- cells


def percent(value: float | None) -> str:
    """A top-1 accuracy as the paper prints it: two decimals."""
    return "" if pd.isna(value) else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A gap with its sign."""
    return "" if pd.isna(value) else f"{value:+.2f}"


def measured(cell: Any) -> str:
    """Mean and its ±: the deviation over seeds, or (marked) what one seed's test images alone give."""
    # A mean over pairs has neither: pandas gives NaN for it, which is written as nothing.
    spread = percent(cell.spread)
    mark = ONE_SEED if spread and pd.isna(cell.deviation) else ""
    return " ± ".join(filter(None, [percent(cell.mean), f"{spread}{mark}"]))


def printed(cell: Any) -> str:
    """The printed number with the mark of its status."""
    if pd.isna(cell.printed):
        return ""
    return f"{cell.printed:.2f}{STATUS_MARKS[cell.status]}"


def independent(cell: Any) -> str:
    """What others measured, each number with the mark of its status."""
    if pd.isna(cell.independent):
        return ""
    return ", ".join(number + STATUS_MARKS["independent"] for number in cell.independent.split(", "))


def statuses_of(cells: pd.DataFrame) -> list[object]:
    """The statuses of all numbers that are not ours."""
    return [*cells.status, *(["independent"] if cells.independent.notna().any() else [])]


def cell_text(cell: Any, lead: str = "", paper: bool = True) -> CellText:
    """`measured (printed; by others)`, leaving out what is not known; of an unfinished cell how it stands."""
    ours = " ".join(filter(None, [measured(cell), f"[{cell.state}]" if cell.state else ""]))
    theirs = ""
    if paper:
        theirs = "; ".join(filter(None, [printed(cell), independent(cell)]))
    return CellText(ours or ("-" if theirs else ""), f" ({theirs})" if theirs else "", lead)


def note_of(cell: Any) -> str:
    """The remarks of a cell, of its printed number, and whose independent runs there are."""
    notes = [note for note in (cell.note, cell.remark) if not pd.isna(note) and note]
    if not pd.isna(cell.independent):
        notes.append(f"others measured {cell.independent} ({cell.independent_source})")
    return "; ".join(notes)


def cost_lines(costs: CostResults) -> list[list[str]]:
    """Lines of the cost table: per quantity printed, by the paper's rule, true."""
    lines = []
    for _, group in costs.frame.groupby(["row", "part"], sort=False):
        cells = [text for line in rows_of(group) for text in cost_cells(line)]
        lines.append([group.row_label.iloc[0], group.label.iloc[0], *cells])
    return lines


def cost_cells(line: Any) -> list[str]:
    """The printed digit, marked where the paper's rule gives another, and the two counts."""
    unit = UNITS[line.quantity][2]
    paper = "" if pd.isna(line.printed) else f"{line.printed:.2f} {unit}"
    mark = " (a)" if paper and line.gap else ""
    return [f"{paper}{mark}", f"{line.rule:.2f} {unit}", f"{line.true:.2f} {unit}"]


# ---------------------------------------------------------------- CSV


def to_csv(results: Results) -> str:
    """One line per cell, for programs; top-1 in %. A cost table: exact counts, a line per counted part."""
    if isinstance(results, RecipeResults):
        return as_csv(results.frame)
    if isinstance(results, CostResults):
        return as_csv(_count_lines(results))
    return as_csv(_cell_lines(results))


def _cell_lines(table: TableResults) -> pd.DataFrame:
    cells = table.cells.reset_index()
    lines = cells[["row", "column", "row_label", "column_label"]].assign(
        # Not cells.mean: that is the frame's method.
        top1=cells["mean"].map(percent),
        deviation=cells.deviation.map(percent),
        spread=cells.spread.map(percent),
        # No seeds: the number is a mean over pairs, or there is none at all.
        seeds=[count or "" for count in cells.seeds],
        printed=cells.printed.map(percent),
        gap=cells.gap.map(signed),
        lead=[table.leads.get((cell.row, cell.column), "") for cell in rows_of(cells)],
        status=cells.status,
        source=cells.source,
        independent=cells.independent,
        note=[note_of(cell) for cell in rows_of(cells)],
        runs=cells.runs.map(" ".join),
    )
    lines.insert(0, "scale", table.scale)
    return lines


def _count_lines(costs: CostResults) -> pd.DataFrame:
    lines = []
    for (row, part), group in costs.frame.groupby(["row", "part"], sort=False):
        by_quantity = group.set_index("quantity")
        line = {"row": row, "part": part, "label": group.label.iloc[0]}
        for rule in ("rule", "true"):
            for quantity, (name, _, _) in UNITS.items():
                column = f"{name}_{'paper_rule' if rule == 'rule' else rule}"
                line[column] = by_quantity[f"{rule}_count"][quantity]
        line["printed_params_m"] = percent(by_quantity.printed["params"])
        line["printed_macs_g"] = percent(by_quantity.printed["flops"])
        lines.append(line)
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- Markdown


def escape_markdown(text: str) -> str:
    """Text that cannot break a Markdown table or start markup."""
    # The backslash comes first: later it would escape the backslashes of the others.
    for letter in "\\|*_`<>[]":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def to_markdown(results: Results, paper: bool = True) -> str:
    """The table as printed, each cell `measured (printed)`; `paper`: with the printed numbers."""
    sheet = make_sheet(results, paper)
    parts = [f"# {escape_markdown(results.title)}"]
    parts += [f"**{sheet.scale_label}**"] if sheet.scale_label else []
    parts += [escape_markdown(sheet.caption), markdown_table(sheet.head, sheet.lines)]
    parts += map(escape_markdown, all_remarks(sheet))
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: str | CellText) -> str:
    """Bold leads beyond noise; italics are tied with the best, as Markdown cannot underline."""
    if isinstance(cell, str):
        return escape_markdown(cell)
    sign = {"leads": "**", "tied": "*"}.get(cell.lead, "")
    rest = escape_markdown(cell.rest)
    return f"{sign}{escape_markdown(cell.ours)}{sign}{' ' if rest else ''}{rest}"


def all_remarks(sheet: Sheet) -> list[str]:
    """What stands below the table: what its marks mean, which score it shows, and its warnings."""
    return [*sheet.remarks, *(f"Warning: {warning}." for warning in sheet.warnings)]


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str | CellText]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rows = [[_markdown_cell(cell) for cell in line] for line in [head, *lines]]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows[0], rule, *rows[1:]])

"""Tables as CSV (one line per cell), Markdown and LaTeX; smoke numbers carry their label everywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fbt_core.files import write_text
from fbt_paper.tables.collect import SCORES, Collected, Entry
from fbt_paper.tables.cost_table import UNITS, CostLine, Costs
from fbt_paper.tables.reference import STATUS_MARKS, legend

SMOKE_LABEL = (
    "SMOKE: tiny networks on a small Fashion-MNIST subset. These numbers show that the chain works; "
    "they are not the paper's and cannot be compared with them."
)
READING = "Each cell: measured (printed)."
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands; -> becomes an arrow."""
    parts = text.split("->")
    return r"$\rightarrow$".join("".join(LATEX.get(letter, letter) for letter in part) for part in parts)


def escape_markdown(text: str) -> str:
    """Text that cannot break a Markdown table or start markup."""
    for letter in "\\|*_`<>[]":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def percent(value: float | None) -> str:
    """A top-1 accuracy or a gap as the paper prints it: two decimals."""
    return "" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A gap with its sign."""
    return "" if value is None else f"{value:+.2f}"


def measured(entry: Entry) -> str:
    """Mean, and the deviation from two seeds on."""
    if entry.deviation is None:
        return percent(entry.mean)
    return f"{percent(entry.mean)} ± {percent(entry.deviation)}"


def printed(entry: Entry) -> str:
    """The printed number with the mark of its status."""
    if entry.reference is None:
        return ""
    return f"{entry.reference.value:.2f}{STATUS_MARKS[entry.reference.status]}"


def cell_text(entry: Entry) -> str:
    """`measured (printed)`, leaving out what is not known."""
    ours, paper = measured(entry), printed(entry)
    if not paper:
        return ours
    return f"{ours or '-'} ({paper})"


# ---------------------------------------------------------------- accuracy tables

CSV_COLUMNS = ["scale", "row", "column", "row_label", "column_label", "top1", "deviation", "seeds"]
CSV_COLUMNS += ["printed", "gap", "status", "source", "note", "runs"]


def to_csv(table: Collected) -> str:
    """One line per cell, for programs; top-1 in %."""
    lines = []
    for row, row_label in table.rows:
        for column, column_label in table.columns:
            if (row, column) not in table.entries:
                continue
            entry = table.entries[row, column]
            reference = entry.reference
            note = "; ".join(part for part in (entry.note, reference.note if reference else "") if part)
            numbers = [percent(entry.mean), percent(entry.deviation), str(len(entry.runs) or "")]
            source = [reference.status, reference.source] if reference else ["", ""]
            printed_number = percent(reference.value) if reference else ""
            lines.append(
                [table.scale, row, column, row_label, column_label, *numbers, printed_number]
                + [signed(entry.gap), *source, note, " ".join(entry.runs)]
            )
    return _csv(CSV_COLUMNS, lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return buffer.getvalue()


def to_markdown(table: Collected) -> str:
    """The table as printed, each cell `measured (printed)`."""
    head = [table.corner, *(label for _, label in table.columns)]
    lines = [
        [label, *(cell_text(table.entry(row, c)) for c, _ in table.columns)] for row, label in table.rows
    ]
    parts = [
        f"# {escape_markdown(table.title)}",
        *_label(table.scale),
        escape_markdown(f"{table.caption} {READING}"),
    ]
    parts += [markdown_table(head, lines), *_remarks(table, escape_markdown)]
    return "\n\n".join(parts) + "\n"


def _label(scale: str) -> list[str]:
    return [f"**{SMOKE_LABEL}**"] if scale == "smoke" else []


def _remarks(table: Collected, escape: Callable[[str], str]) -> list[str]:
    marks = legend({place: e.reference for place, e in table.entries.items() if e.reference})
    seeds = sorted({len(entry.runs) for entry in table.entries.values() if entry.runs})
    counts = (
        f"Top-1 of {SCORES[table.score]}. Seeds per cell: {', '.join(map(str, seeds))}; "
        "± is the sample standard deviation."
        if seeds
        else ""
    )
    warnings = (f"Warning: {warning}." for warning in table.warnings)
    return [escape(part) for part in (*marks, counts, *warnings) if part]


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rows = [[escape_markdown(text) for text in line] for line in [head, *lines]]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows[0], rule, *rows[1:]])


def to_latex(table: Collected) -> str:
    r"""A `table` for a paper; needs \usepackage{booktabs}."""
    head = [table.corner, *(label for _, label in table.columns)]
    lines = [
        [label, *(cell_text(table.entry(row, c)) for c, _ in table.columns)] for row, label in table.rows
    ]
    caption = f"{table.title}. {table.caption} {READING}"
    return latex_table(table.key, caption, table.scale, head, lines, _remarks(table, escape_latex))


def latex_table(
    key: str,
    caption: str,
    scale: str,
    head: Sequence[str],
    lines: Iterable[Sequence[str]],
    remarks: Sequence[str],
) -> str:
    r"""A booktabs table; \footnotesize where it is wide."""
    caption = f"{SMOKE_LABEL} {caption}" if scale == "smoke" else caption
    size = [r"\scriptsize", r"\setlength{\tabcolsep}{2pt}"] if len(head) > 6 else []
    body = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", _latex_line(head), r"\midrule"]
    body += [*(_latex_line(line) for line in lines), r"\bottomrule", r"\end{tabular}"]
    text = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", *size]
    text += [rf"\caption{{{escape_latex(caption)}}}", rf"\label{{tab:{key}}}", *body]
    text += [r"\par\smallskip", *(remark + r"\par" for remark in remarks), r"\end{table}", ""]
    return "\n".join(text)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"


# ---------------------------------------------------------------- the cost table


def costs_to_csv(costs: Costs) -> str:
    """Exact counts, one line per pair and counted part."""
    head = [
        "row",
        "part",
        "label",
        "parameters_paper_rule",
        "macs_paper_rule",
        "parameters_true",
        "macs_true",
    ]
    head += ["printed_params_m", "printed_macs_g"]
    lines = []
    for line in costs.lines:
        counts = [
            str(line.exact[rule][name]) for rule in ("paper_rule", "true") for name, _, _ in UNITS.values()
        ]
        paper = [percent(line.paper.get(what)) for what in UNITS]
        lines.append([line.row, line.part, line.label, *counts, *paper])
    return _csv(head, lines)


COST_HEAD = ["Teacher -> student", "", "Params (paper)", "Params (its rule)", "Params (true)"]
COST_HEAD += ["MACs (paper)", "MACs (its rule)", "MACs (true)"]


def cost_rows(costs: Costs) -> list[list[str]]:
    """Lines of the cost table: printed, by the paper's rule, true."""
    return [
        [line.pair, line.label, *_cost_cells(line, "params"), *_cost_cells(line, "flops")]
        for line in costs.lines
    ]


def _cost_cells(line: CostLine, what: str) -> list[str]:
    unit = UNITS[what][2]
    paper = f"{line.paper[what]:.2f} {unit}" if what in line.paper else ""
    mark = " (a)" if line.differs(what) else ""
    return [paper + mark, f"{line.rule[what]:.2f} {unit}", f"{line.true[what]:.2f} {unit}"]


def _cost_remarks(costs: Costs) -> list[str]:
    return [f"(a) {note}" for note in costs.footnotes]


def costs_to_markdown(costs: Costs) -> str:
    """The cost table with its footnotes."""
    parts = [f"# {escape_markdown(costs.title)}", escape_markdown(costs.caption)]
    parts += [markdown_table(COST_HEAD, cost_rows(costs)), *map(escape_markdown, _cost_remarks(costs))]
    return "\n\n".join(parts) + "\n"


def costs_to_latex(costs: Costs) -> str:
    """The cost table for a paper."""
    caption, remarks = (
        f"{costs.title}. {costs.caption}",
        [escape_latex(note) for note in _cost_remarks(costs)],
    )
    return latex_table(costs.key, caption, "paper", COST_HEAD, cost_rows(costs), remarks)


def write_table(table: Collected | Costs, folder: Path) -> list[Path]:
    """<folder>/<table>.csv, .md and .tex; returns their paths."""
    if isinstance(table, Costs):
        texts = {"csv": costs_to_csv(table), "md": costs_to_markdown(table), "tex": costs_to_latex(table)}
    else:
        texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}
    paths = []
    for kind, text in texts.items():
        paths.append(folder / f"{table.key}.{kind}")
        write_text(paths[-1], text)
    return paths

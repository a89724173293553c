r"""Tables as LaTeX for a paper: \usepackage{booktabs,graphicx}; nothing is wider than its text block."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from fbt_paper.tables.cost_table import UNITS, CostResults
from fbt_paper.tables.frame import rows_of
from fbt_paper.tables.render import CellText, Sheet, all_remarks, make_sheet
from fbt_paper.tables.results import Results

SYMBOL = re.compile(r"\b([LK])_([A-Za-z]+)\b")
"""A loss or knowledge term in a label: L_MSE, K_t."""
TEXT = {
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
    # After \\ LaTeX reads [ and * as the line break's own arguments: inside braces they are letters.
    "[": "{[}",
    "*": "{*}",
    '"': "{''}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{WORD JOINER}": "{}",
    # pdfLaTeX knows letters beyond ASCII only as commands, or in packages that an author may not load.
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "œ": r"\oe{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "©": r"\copyright{}",
}
"""Letters that LaTeX reads in another way, or not at all, as commands."""
MATH = {
    "±": r"\pm",
    "×": r"\times",
    "÷": r"\div",
    "·": r"\cdot",
    "−": "-",
    "≤": r"\leq",
    "≥": r"\geq",
    "≠": r"\neq",
    "≈": r"\approx",
    "∼": r"\sim",
    "∞": r"\infty",
    "→": r"\rightarrow",
    "←": r"\leftarrow",
    "↔": r"\leftrightarrow",
    "∈": r"\in",
    "∑": r"\sum",
    "√": r"\surd",
    "°": r"^{\circ}",
    "²": "^{2}",
    "³": "^{3}",
    "¹": "^{1}",
    "µ": r"\mu",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "∅": r"\emptyset",
}
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
"""Combining accents as LaTeX's accent commands."""
GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon"
)
GREEK_NAMES += " phi chi psi omega"
GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψω", GREEK_NAMES.split(), strict=True))
GREEK |= {letter.upper(): name.capitalize() for letter, name in GREEK.items()}
LATIN_CAPITALS = {"Α": "A", "Β": "B", "Ε": "E", "Ζ": "Z", "Η": "H", "Ι": "I", "Κ": "K", "Μ": "M", "Ν": "N"}
LATIN_CAPITALS |= {"Ο": "O", "Ρ": "P", "Τ": "T", "Υ": "Y", "Χ": "X", "ο": "o"}
"""Greek letters that LaTeX has no command for: they look like Latin ones."""


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints as it stands, as one paragraph; -> is an arrow, L_MSE is \mathcal{L}_{MSE}.

    A letter that pdfLaTeX has no command for stays as it is: `to_latex` says so on top of the file.
    """
    # One paragraph: a caption may hold no empty line. -- stays two hyphens, which LaTeX would join.
    text = " ".join(text.replace("->", "→").replace("--", "-\N{WORD JOINER}-").split())
    # Symbols are taken out before letters are escaped: afterwards their _ would be \_.
    parts = SYMBOL.split(text)
    symbols = list(map(_symbol, parts[1::3], parts[2::3]))
    plain = ["".join(_letter(letter) for letter in part) for part in parts[::3]]
    return "".join(piece for pair in zip(plain, [*symbols, ""], strict=True) for piece in pair)


def _symbol(kind: str, name: str) -> str:
    letter = r"\mathcal{L}" if kind == "L" else kind
    return rf"${letter}_{{\mathrm{{{name}}}}}$"


def _letter(letter: str) -> str:
    if letter in TEXT:
        return TEXT[letter]
    if " " <= letter <= "~":
        return letter
    if letter in MATH:
        return f"${MATH[letter]}$"
    # Decomposed, an accented letter is its base and its accents: no table of all such letters is needed.
    base, accents = (parts := unicodedata.normalize("NFD", letter))[0], parts[1:]
    if accents in ACCENTS and base.isascii():
        return rf"\{ACCENTS[accents]}{{{base}}}"
    # Before the Greek ones: LaTeX has \Gamma, but no \Alpha, as that looks like A.
    if letter in LATIN_CAPITALS:
        return LATIN_CAPITALS[letter]
    if letter in GREEK:
        return rf"$\{GREEK[letter]}$"
    # XeLaTeX and LuaLaTeX print every letter; what controls a terminal is none.
    return letter if letter.isprintable() else ""


def to_latex(results: Results, paper: bool = True) -> str:
    """A `table` with its caption and notes; shrunk where it would be wider than the text.

    `paper`: with the printed numbers beside ours; without them it is a table for a paper of one's own.
    """
    sheet = make_sheet(results, paper)
    # LaTeX numbers its tables, so a title that is a number alone would be said twice
    title = f"{results.title}."
    if re.fullmatch(r"Table \w+", results.title):
        title = ""
    caption = escape_latex(" ".join(filter(None, [sheet.scale_label, title, sheet.caption])))
    tabular = _body(results, sheet, paper)
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{results.key}}}",
        # \resizebox alone would also blow a small table up to the width of the text.
        rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{{tabular}}}",
    ]
    table = "\n".join([*lines, *footnotes(all_remarks(sheet)), r"\end{table}", ""])
    return "".join([*hints(table), table])


def footnotes(remarks: Sequence[str]) -> list[str]:
    """The lines of the notes below a table."""
    lines = [escape_latex(remark) + r"\par" for remark in remarks]
    return [r"\par\smallskip", r"{\footnotesize", *lines, "}"] if lines else []


def hints(table: str) -> Iterator[str]:
    """A comment for each letter that pdfLaTeX cannot print: its own error would not say what to do."""
    # Sorted: the order of a set differs from process to process, and the file must not.
    for letter in sorted({letter for letter in table if not letter.isascii()}):
        name = unicodedata.name(letter, "a letter without a name")
        letter_name = f"U+{ord(letter):04X} ({name})"
        yield f"% pdfLaTeX cannot print {letter_name}: use XeLaTeX or LuaLaTeX, or Latin letters\n"


def _body(results: Results, sheet: Sheet, paper: bool) -> str:
    if isinstance(results, CostResults):
        return "\n".join(_cost_body(results, paper))
    frame = pd.DataFrame([[latex_cell(cell) for cell in line] for line in sheet.lines])
    head: dict[Any, str] = {index: escape_latex(text) for index, text in enumerate(sheet.head)}
    styler = frame.style.hide(axis="index").format_index(head.__getitem__, axis=1)
    text: str = styler.to_latex(hrules=True, column_format="l" + "r" * (len(head) - 1))
    return text.rstrip()


def latex_cell(cell: str | CellText) -> str:
    """Bold leads beyond noise, underlined is tied with the best."""
    if isinstance(cell, str):
        return escape_latex(cell)
    command = {"leads": r"\textbf", "tied": r"\underline"}.get(cell.lead)
    ours, rest = escape_latex(cell.ours), escape_latex(cell.rest)
    if command:
        ours = f"{command}{{{ours}}}"
    return f"{ours} {rest}" if rest else ours


def _cost_body(costs: CostResults, paper: bool) -> Iterator[str]:
    """Parameters and MACs side by side, the pairs as groups of lines."""
    # By hand: Styler writes no line across all columns between rows, as the pairs' titles are.
    counted = ["paper", "its rule", "true"] if paper else ["paper's rule", "true"]
    width = len(counted)
    yield rf"\begin{{tabular}}{{l{'r' * 2 * width}}}"
    yield r"\toprule"
    parameters, macs = (unit for _, _, unit in UNITS.values())
    group = rf"\multicolumn{{{width}}}{{c}}"
    yield rf" & {group}{{Parameters ({parameters})}} & {group}{{MACs ({macs})}} \\"
    yield rf"\cmidrule(lr){{2-{1 + width}}} \cmidrule(lr){{{2 + width}-{1 + 2 * width}}}"
    yield rf"{escape_latex(costs.corner)} & {' & '.join(counted * 2)} \\"
    for _, pair in costs.frame.groupby("row", sort=False):
        yield r"\midrule"
        yield rf"\multicolumn{{{1 + 2 * width}}}{{l}}{{{escape_latex(pair.row_label.iloc[0])}}} \\"
        for _, part in pair.groupby("part", sort=False):
            cells = [text for count in rows_of(part) for text in _count(count)[-width:]]
            yield rf"\quad {escape_latex(part.label.iloc[0])} & {' & '.join(cells)} \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _count(count: Any) -> list[str]:
    """The printed digit, marked if the paper's rule gives another, and the two counts."""
    known = pd.notna(count.printed)
    mark = r"\textsuperscript{a}" if known and count.gap else ""
    return [f"{count.printed:.2f}{mark}" if known else "", f"{count.rule:.2f}", f"{count.true:.2f}"]

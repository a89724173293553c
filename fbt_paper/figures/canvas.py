"""What every figure shares: style, page widths, and saving with the numbers beside the picture.

Figures are made without pyplot and look as style.mplstyle says, whatever a user's matplotlibrc or MPLBACKEND
holds (a notebook's terminal sets a backend that only its own kernel can load).
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from fbt_core.files import make_folder, write_bytes

COLUMN_WIDTH = 3.3
"""Inches of one column of a two-column page."""
PAGE_WIDTH = 6.9
LABEL_LENGTH = 26
FIRST_STAND_IN = 0xE000  # private letters, which no label holds
NOTE_LETTERS = 19
"""Letters of a note (6.5 points) that fit on an inch."""
STYLE, PAPER_STYLE = (Path(__file__).with_name(name) for name in ("style.mplstyle", "paper.mplstyle"))
STYLES = ("page", "paper")
"""page: sans serif, with a line that says what it shows; paper: serif, without one."""
OURS, PAPER, QUIET = "#0072B2", "#D55E00", "#666666"


@contextmanager
def styled(name: str = "page") -> Iterator[None]:
    """Draw inside this block in the project's style alone, that of the results page or of a paper."""
    # From matplotlib's defaults on: a user's matplotlibrc would otherwise fill what STYLE leaves open.
    with style.context(["default", STYLE, *([PAPER_STYLE] if name == "paper" else [])]):
        yield


def remove_note(figure: Any) -> None:
    """Take away the line that says what a figure shows: in a paper its caption does."""
    for legend in figure.legends:
        legend.set_title(None)
    for text in (figure._suptitle, figure._supxlabel):
        # The one small line at the left; a centred label belongs to the axes.
        if text is not None and text.get_ha() == "left":
            text.set_text("")


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of `size` inches."""
    # Without pyplot, which keeps every figure until it is closed and picks a backend by MPLBACKEND.
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def new_panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure of `size` inches with rows x columns axes, as a 2-D array."""
    figure = new_figure(size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_pdf(pages: Sequence[Figure], path: Path) -> None:
    """Write all pages as one PDF; the same figures give the same bytes."""
    # In memory first: the file itself is written whole, or not at all.
    content = io.BytesIO()
    # Without the date: a figure that has not changed must not be a changed file.
    with PdfPages(content, metadata={"CreationDate": None}) as file:
        for figure in pages:
            file.savefig(figure)
    make_folder(path.parent)
    write_bytes(path, content.getvalue())


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture; the same figure gives the same bytes."""
    content = io.BytesIO()
    # Without matplotlib's version, which would be in every file.
    figure.savefig(content, format="png", metadata={"Software": None})
    make_folder(path.parent)
    write_bytes(path, content.getvalue())


def lay_out(figure: Any) -> None:
    """Fix all positions once (180 panels take half a minute), rounded: the solver's last digits vary."""
    # The engine acts while drawing: drawn once here, then switched off, or each saving would lay out again.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(value, 4) for value in axes.get_position(original=True).bounds])
    for title in (figure._suptitle, figure._supxlabel, figure._supylabel):
        if title is not None:
            title.set_position([round(value, 4) for value in title.get_position()])


def fit_note(note: str, width: float) -> str:
    """The note on as many lines as it needs to stay within a figure of `width` inches."""
    return textwrap.fill(note, int(width * NOTE_LETTERS))


def plain(*labels: str) -> str:
    """Labels as one line of text without mathematics, for alternative texts."""
    return ", ".join(
        re.sub(r"\\mathcal|[${}]", "", label).replace("_", " ").replace("→", "to") for label in labels
    )


def wrap_label(label: str) -> str:
    """A label on as many lines as it needs, by what is seen; mathematics is never broken."""
    # textwrap counts what is written: 19 letters for `$\mathcal{L}_{MSE}$`, drawn about as wide as two.
    symbols = re.findall(r"\$[^$]*\$", label)
    stand_ins = [chr(FIRST_STAND_IN + i) * _letters_seen(symbol) for i, symbol in enumerate(symbols)]
    for symbol, stand_in in zip(symbols, stand_ins, strict=True):
        # One at a time: the same symbol may stand in a label twice.
        label = label.replace(symbol, stand_in, 1)
    wrapped = textwrap.fill(label, LABEL_LENGTH, break_long_words=False)
    for symbol, stand_in in zip(symbols, stand_ins, strict=True):
        wrapped = wrapped.replace(stand_in, symbol, 1)
    return wrapped


def _letters_seen(symbol: str) -> int:
    """About how many letters wide a symbol is drawn: commands are one, subscripts half."""
    letters = re.sub(r"\\[a-z]+|[${}^]", "", symbol)
    base, _, below = letters.partition("_")
    return max(1, len(base) + len(below) // 2)

"""What every figure shares: style, page widths, and saving with the numbers beside the picture."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.backends.backend_pdf import PdfPages

from fbt_core.files import make_folder, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLUMN_WIDTH",
    "OURS",
    "PAGE_WIDTH",
    "PAPER",
    "QUIET",
    "fit_note",
    "new_panels",
    "pyplot",
    "save_figure",
    "save_pages",
    "styled",
    "write_numbers",
]

COLUMN_WIDTH = 3.3
"""Inches of one column of a two-column page."""
PAGE_WIDTH = 6.9
NOTE_LETTERS = 19
"""Letters of a note (6.5 points) that fit on an inch."""
STYLE = Path(__file__).with_name("style.mplstyle")
OURS, PAPER, QUIET = "#0072B2", "#D55E00", "#666666"


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside this block in the project's style; figures made in it are closed at its end."""
    with pyplot.style.context(STYLE):
        try:
            yield
        finally:
            pyplot.close("all")


def new_panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure of `size` inches with rows x columns axes, as a 2-D array."""
    found: tuple[Figure, Any] = pyplot.subplots(rows, columns, figsize=size, squeeze=False, **options)
    return found


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.pdf` and `<stem>.png`, each whole or not at all; the same figure gives the same bytes."""
    return save_pages([figure], stem)


def save_pages(pages: Sequence[Figure], stem: Path) -> tuple[Path, Path]:
    """Like save_figure, with all pages in the PDF and the first one as PNG."""
    make_folder(stem.parent)
    for figure in pages:
        _lay_out(figure)

    pdf, png = stem.with_name(f"{stem.name}.pdf"), stem.with_name(f"{stem.name}.png")
    content = io.BytesIO()
    with PdfPages(content, metadata={"CreationDate": None}) as file:
        for figure in pages:
            file.savefig(figure)
    write_bytes(pdf, content.getvalue())
    content = io.BytesIO()
    pages[0].savefig(content, format="png", metadata={"Software": None})
    write_bytes(png, content.getvalue())
    return pdf, png


def _lay_out(figure: Any) -> None:
    """Place everything once (180 panels take half a minute), rounded: the solver's last digits vary."""
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


def write_numbers(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """The plotted numbers as CSV, so that anyone can draw them again; None is an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else _plain(value) for value in row] for row in rows])
    write_text(path, file.getvalue())
    return path


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value

"""Ours against paper: a line per cell of a table, a dot for ours, a diamond for the paper, the gap."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from fbt_paper.figures.canvas import (
    COLUMN_WIDTH,
    OURS,
    PAGE_WIDTH,
    PAPER,
    QUIET,
    fit_note,
    new_panels,
    pyplot,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = ("row", "column", "ours", "standard_deviation", "seeds", "paper", "gap")
LINE, NEXT_LINE = 0.165, 0.115
"""Inches of height of a cell, and of each further line of its label."""
LABEL_LENGTH = 26
FIRST_STAND_IN = 0xE000  # private letters, which no label holds
HOLLOW: dict[str, Any] = {"color": PAPER, "markerfacecolor": "white"}


@dataclass(frozen=True)
class Dot:
    """One cell: our mean (None: not measured), deviation over seeds (None below two), printed number."""

    row: str
    column: str
    ours: float | None
    deviation: float | None
    seeds: int
    paper: float | None

    @property
    def gap(self) -> float | None:
        """Measured minus printed."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


def dot_rows(dots: Sequence[Dot]) -> list[tuple[object, ...]]:
    """The figure as rows of a table (HEADER names the columns)."""
    return [(d.row, d.column, d.ours, d.deviation, d.seeds, d.paper, d.gap) for d in dots]


def draw_dots(dots: Sequence[Dot], note: str, gap: str = "gap") -> Figure:
    """One panel per column of the table, side by side from 60 cells on, with a common scale.

    `gap` heads the gaps, written at the right: at scale smoke it warns that they compare unlike things.
    """
    columns = list(dict.fromkeys(dot.column for dot in dots))
    panels = [[dot for dot in dots if dot.column == column] for column in columns]
    across = 1 if len(dots) <= 60 else 2
    down = -(-len(panels) // across)
    heights = [max(map(_height, panels[i * across : (i + 1) * across])) for i in range(down)]
    size = (COLUMN_WIDTH if across == 1 else PAGE_WIDTH, sum(heights) + 0.26 * down + 0.62)
    ratios = {"height_ratios": heights}
    figure, grid = new_panels(down, across, size, sharex=True, gridspec_kw=ratios)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
        _write_beside(axes, (1, 1), gap, ("axes fraction", "axes fraction"), va="bottom")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _finish(figure, list(grid.flat), panels, across, note)
    return figure


def _height(panel: Sequence[Dot]) -> float:
    """Inches a panel needs: the tallest label decides, so that no two meet."""
    lines = max(wrap_label(dot.row).count("\n") for dot in panel)
    return (len(panel) + 0.2) * (LINE + NEXT_LINE * lines)


def wrap_label(label: str) -> str:
    """A row's label on as many lines as it needs, told by what is seen; mathematics is never broken."""
    symbols = re.findall(r"\$[^$]*\$", label)
    stand_ins = [chr(FIRST_STAND_IN + i) * _letters_seen(symbol) for i, symbol in enumerate(symbols)]
    for symbol, stand_in in zip(symbols, stand_ins, strict=True):
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


def _draw_panel(axes: Axes, panel: Sequence[Dot]) -> None:
    for y, dot in enumerate(panel):
        if dot.ours is not None and dot.paper is not None:
            both = [dot.paper, dot.ours]
            axes.plot(both, [y, y], color="#bbbbbb", linestyle="-", linewidth=1.2, zorder=1, clip_on=False)
        if dot.paper is not None:
            axes.plot(dot.paper, y, "D", markersize=4, zorder=2, clip_on=False, **HOLLOW)
        if dot.ours is not None:
            axes.errorbar(
                dot.ours,
                y,
                xerr=dot.deviation,
                fmt="o",
                color=OURS,
                markersize=3.5,
                capsize=2,
                elinewidth=0.8,
                clip_on=False,
            )
        _write_gap(axes, y, dot)
    axes.set_yticks(range(len(panel)), [wrap_label(dot.row) for dot in panel], linespacing=0.95)
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.set_title(panel[0].column, loc="left", weight="bold", pad=3)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


def _write_gap(axes: Axes, y: int, dot: Dot) -> None:
    """The gap, written to the right of the panel."""
    if dot.gap is not None:
        _write_beside(axes, (1, y), f"{dot.gap:+.2f}", ("axes fraction", "data"), va="center")


def _write_beside(axes: Axes, place: tuple[float, float], text: str, where: tuple[str, str], va: str) -> None:
    options: dict[str, Any] = {"xycoords": where, "xytext": (3, 0), "textcoords": "offset points", "va": va}
    axes.annotate(text, place, fontsize=6, color=QUIET, annotation_clip=False, **options)


def _finish(
    figure: Figure, grid: Sequence[Axes], panels: Sequence[Sequence[Dot]], across: int, note: str
) -> None:
    for axes in grid[max(0, len(panels) - across) : len(panels)]:
        axes.set_xlabel("top-1 accuracy (%)")
        axes.xaxis.set_tick_params(labelbottom=True)
    ours = pyplot.Line2D([], [], marker="o", color=OURS, linestyle="none", markersize=3.5)
    paper = pyplot.Line2D([], [], marker="D", linestyle="none", markersize=4, **HOLLOW)
    labels = (
        ["ours, ± one standard deviation over seeds", "paper"] if _has_spread(panels) else ["ours", "paper"]
    )
    figure.legend(
        [ours, paper],
        labels,
        loc="outside upper left",
        ncols=2,
        handletextpad=0.3,
        title=fit_note(note, figure.get_size_inches()[0]),
        title_fontsize=6.5,
        alignment="left",
    )


def _has_spread(panels: Sequence[Sequence[Dot]]) -> bool:
    return any(dot.deviation is not None for panel in panels for dot in panel)

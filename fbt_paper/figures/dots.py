"""Ours against paper: a line per cell of a table, a dot for ours, a diamond for the paper, the gap.

Drawn from a frame with a row per cell: row and column (labels), ours (mean over the seeds),
standard_deviation, seeds, paper, gap; what is not known is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fbt_paper.figures.canvas import (
    COLUMN_WIDTH,
    OURS,
    PAGE_WIDTH,
    PAPER,
    QUIET,
    fit_note,
    new_panels,
    plain,
    wrap_label,
)
from fbt_paper.tables.frame import rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, NEXT_LINE = 0.165, 0.115
"""Inches of height of a cell, and of each further line of its label."""


def draw_dots(dots: pd.DataFrame, note: str) -> Figure:
    """One panel per column of the table, side by side from 60 cells on, with a common scale."""
    panels = [panel for _, panel in dots.groupby("column", sort=False)]
    across = 1 if len(dots) <= 60 else 2
    down = -(-len(panels) // across)
    # Panels side by side have one height, that of the taller.
    heights = [max(map(_height, panels[i * across : (i + 1) * across])) for i in range(down)]
    size = (COLUMN_WIDTH if across == 1 else PAGE_WIDTH, sum(heights) + 0.26 * down + 0.62)
    ratios = {"height_ratios": heights}
    figure, grid = new_panels(down, across, size, sharex=True, gridspec_kw=ratios)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
        _write_beside(axes, (1, 1), "gap", ("axes fraction", "axes fraction"), va="bottom")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _finish(figure, list(grid.flat), panels, across, note)
    return figure


def _height(panel: pd.DataFrame) -> float:
    """Inches a panel needs: the tallest label decides, so that no two meet."""
    lines = max(wrap_label(row).count("\n") for row in panel.row)
    return (len(panel) + 0.2) * (LINE + NEXT_LINE * lines)


def _draw_panel(axes: Axes, panel: pd.DataFrame) -> None:
    for y, dot in enumerate(rows_of(panel)):
        if pd.notna(dot.gap):
            both = [dot.paper, dot.ours]
            # Not clipped, here and below: a marker at the edge of a panel would be cut in half.
            axes.plot(both, [y, y], color="#bbbbbb", linestyle="-", linewidth=1.2, zorder=1, clip_on=False)
        if pd.notna(dot.paper):
            axes.plot(
                dot.paper, y, "D", color=PAPER, markerfacecolor="white", markersize=4, zorder=2, clip_on=False
            )
        if pd.notna(dot.ours):
            axes.errorbar(
                dot.ours,
                y,
                xerr=None if pd.isna(dot.standard_deviation) else dot.standard_deviation,
                fmt="o",
                color=OURS,
                markersize=3.5,
                capsize=2,
                elinewidth=0.8,
                clip_on=False,
            )
        if pd.notna(dot.gap):
            _write_beside(axes, (1, y), f"{dot.gap:+.2f}", ("axes fraction", "data"), va="center")
    axes.set_yticks(range(len(panel)), list(map(wrap_label, panel.row)), linespacing=0.95)
    # Upside down, so that the first row of the table is on top.
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.set_title(wrap_label(panel.column.iloc[0]), loc="left", weight="bold", pad=3)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


def _write_beside(axes: Axes, point: tuple[float, float], text: str, where: tuple[str, str], va: str) -> None:
    axes.annotate(
        text,
        point,
        xytext=(3, 0),
        xycoords=where,
        textcoords="offset points",
        annotation_clip=False,
        va=va,
        fontsize=6,
        color=QUIET,
    )


def _finish(
    figure: Figure, grid: Sequence[Axes], panels: Sequence[pd.DataFrame], across: int, note: str
) -> None:
    for axes in grid[max(0, len(panels) - across) : len(panels)]:
        axes.set_xlabel("top-1 accuracy (%)")
        axes.xaxis.set_tick_params(labelbottom=True)
    ours = Line2D([], [], marker="o", color=OURS, linestyle="none", markersize=3.5)
    paper = Line2D([], [], marker="D", linestyle="none", color=PAPER, markerfacecolor="white", markersize=4)
    # Without a deviation there are no bars for the legend to explain.
    label = "ours"
    if any(panel.standard_deviation.notna().any() for panel in panels):
        label = "ours, ± one standard deviation over seeds"
    figure.legend(
        [ours, paper],
        [label, "paper"],
        loc="outside upper left",
        ncols=2,
        handletextpad=0.3,
        title=fit_note(note, figure.get_size_inches()[0]),
        title_fontsize=6.5,
        alignment="left",
    )


def describe(dots: pd.DataFrame) -> str:
    """The gaps in words, for the picture's alternative text; empty without any."""
    known = dots.dropna(subset="gap")
    if known.empty:
        return ""
    widest = known.iloc[int(known.gap.abs().argmax())]
    return (
        f"{len(known)} cells; mean gap (ours minus paper) {known.gap.mean():+.2f},"
        f" widest {widest.gap:+.2f} ({plain(widest.row, widest.column)})."
    )

"""Training curves of a table: accuracy by epoch, and every loss term by epoch; seeds as a band.

Drawn from a frame with a row per epoch of a run: row and column (labels), run, seed, epoch, quantity, value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib import rcParams, ticker
from matplotlib.lines import Line2D

from fbt_paper.figures.canvas import COLUMN_WIDTH, PAGE_WIDTH, QUIET, fit_note, new_panels, plain, wrap_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_ACROSS, PANELS_DOWN = 3, 8
"""A table with more columns or rows has no room for a panel per cell: its terms are on a page per column."""
LEAST_TICKS, MOST_TICKS = 3, 6
TICK_DIGITS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))


def band_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and largest value at every epoch that at least one seed has reached."""
    return curves.groupby("epoch").value.agg(["mean", "min", "max"])


def select(curves: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows whose columns hold these values."""
    for column, value in values.items():
        curves = curves[curves[column] == value]
    return curves


def list_terms(curves: pd.DataFrame) -> list[str]:
    """Names of all loss terms of these trainings, in the order they first appear."""
    return [name for name in curves.quantity.unique() if name.startswith("term:")]


def say_term(term: str) -> str:
    """A loss term as a person reads it: teacher -> student, logits."""
    term = term.removeprefix("term:")
    for kind in ("logits", "features"):
        pair = term.removesuffix(f"_{kind}")
        if pair != term and "_to_" in pair:
            return f"{pair.replace('_to_', ' → ')}, {kind}".replace("_", " ")
    return term.replace("_", " ")


def draw_accuracy(curves: pd.DataFrame, note: str) -> Figure:
    """Accuracy: one panel per column of the table, one line per row; the band spans the seeds."""
    return _draw_by_column(curves, "top1", "top-1 accuracy (%)", note)


def draw_losses(curves: pd.DataFrame, note: str) -> list[Figure]:
    """Loss terms, a panel per cell. Of a large table: the total loss, then a page of terms per column."""
    rows, columns = list(curves.row.unique()), list(curves.column.unique())
    if len(columns) <= PANELS_ACROSS and len(rows) <= PANELS_DOWN:
        return [_draw_cells(curves, [[(row, column) for column in columns] for row in rows], note)]
    # The total loss first: the first page is also the PNG, which the results page shows.
    pages = [_draw_by_column(curves, "loss", "total loss", note, alike=False)]
    for column in columns:
        cells = [(row, column) for row in rows]
        lines = [cells[start : start + PANELS_ACROSS] for start in range(0, len(cells), PANELS_ACROSS)]
        pages.append(_draw_cells(select(curves, column=column), lines, f"{note}: {column}"))
    return pages


def _draw_by_column(curves: pd.DataFrame, quantity: str, label: str, note: str, alike: bool = True) -> Figure:
    """One panel per column, one line per row; `alike`: all panels have the same scale."""
    rows, columns = list(curves.row.unique()), list(curves.column.unique())
    across = min(len(columns), PANELS_ACROSS)
    down = -(-len(columns) // across)
    # The legend stands outside of the panels, so its lines are added to the height.
    legend_lines = -(-len(rows) // (3 if across > 1 else 1))
    size = (COLUMN_WIDTH if across == 1 else PAGE_WIDTH, 1.75 * down + 0.14 * legend_lines + 0.3)
    figure, grid = new_panels(down, across, size, sharex=True, sharey=alike)
    # One style a row over all panels, also over those in which the row has no run.
    styles = styles_of(rows)
    # The grid may have more panels than the table has columns.
    for axes, column in zip(grid.flat, columns, strict=False):
        panel = select(curves, column=column, quantity=quantity)
        for row, values in panel.groupby("row", sort=False):
            draw_band(axes, band_over_seeds(values), styles[str(row)])
        axes.set_title(wrap_label(column), loc="left", weight="bold")
    _label(list(grid.flat), len(columns), across, label)
    add_legend(figure, styles, 3 if across > 1 else 1, note)
    return figure


def _draw_cells(curves: pd.DataFrame, lines: Sequence[Sequence[tuple[str, str]]], note: str) -> Figure:
    """A panel per cell, laid out in `lines`; one line per loss term, logarithmic if all are above zero."""
    across, terms = max(map(len, lines)), list_terms(curves)
    width = COLUMN_WIDTH if across == 1 else PAGE_WIDTH
    legend = 2 if across == 1 else 4
    size = (width, 1.2 * len(lines) + 0.14 * -(-len(terms) // legend) + 0.5)
    # No common y: the terms of unlike methods are of unlike size.
    figure, grid = new_panels(len(lines), across, size, sharex=True)
    styles, cells = styles_of(terms), [cell for line in lines for cell in line]
    several_columns = len({column for _, column in cells}) > 1
    for axes, (row, column) in zip(grid.flat, cells, strict=False):
        _draw_terms(axes, select(curves, row=row, column=column), styles)
        axes.set_title(f"{row}\n{wrap_label(column)}" if several_columns else row, loc="left", fontsize=6)
    _label(list(grid.flat), len(cells), across, "")
    figure.supylabel("weighted loss term", fontsize=7)
    add_legend(figure, {say_term(term): style for term, style in styles.items()}, legend, note)
    return figure


def _draw_terms(axes: Axes, curves: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]]) -> None:
    if curves.empty:
        axes.text(0.5, 0.5, "no run", ha="center", va="center", transform=axes.transAxes, color=QUIET)
        return
    bands = {term: band_over_seeds(select(curves, quantity=term)) for term in list_terms(curves)}
    for term, band in bands.items():
        draw_band(axes, band, styles[term])
    # A logarithmic axis would leave out what is not above zero.
    if bands and min(band["min"].min() for band in bands.values()) > 0:
        _use_log_scale(axes)


def _use_log_scale(axes: Axes) -> None:
    """A logarithmic axis with three to six plain numbers; evenly spaced ones where it spans little."""
    axes.set_yscale("log")
    # matplotlib's own ticks are powers of ten: an axis from 0.9 to 2.1 would have a single number.
    low, high = axes.get_ylim()
    digits = [
        chosen for chosen in TICK_DIGITS if LEAST_TICKS <= _count_ticks(low, high, chosen) <= MOST_TICKS
    ]
    if digits:
        locator: ticker.Locator = ticker.LogLocator(subs=digits[0], numticks=20)
    elif _count_ticks(low, high, TICK_DIGITS[0]) > MOST_TICKS:
        locator = ticker.LogLocator(numticks=MOST_TICKS)
    else:
        locator = ticker.MaxNLocator(4, min_n_ticks=LEAST_TICKS)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _count_ticks(low: float, high: float, digits: Sequence[float]) -> int:
    """How many of digit times a power of ten lie on an axis."""
    return sum(low <= digit * 10.0**power <= high for power in range(-12, 12) for digit in digits)


def draw_band(axes: Axes, band: pd.DataFrame, style: Mapping[str, Any]) -> None:
    """Means as a line, the least and largest values as a band around it."""
    # Markers for short runs: a single epoch is no line, and would not be seen.
    axes.plot(band.index, band["mean"], marker="." if len(band) < 12 else None, **style)
    if not band["min"].equals(band["max"]):
        axes.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.2, linewidth=0)


def styles_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a line of its own for each name."""
    cycle = list(rcParams["axes.prop_cycle"])
    return {name: dict(cycle[index % len(cycle)]) for index, name in enumerate(names)}


def _label(grid: Sequence[Axes], used: int, across: int, ylabel: str) -> None:
    """Axis labels on the outer panels only; panels without a column are hidden."""
    for index, axes in enumerate(grid):
        if index >= used:
            axes.set_visible(False)
            continue
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        if index >= used - across:
            axes.set_xlabel("epoch")
            # sharex hides the labels of all but the last line, also above panels that are hidden here.
            axes.xaxis.set_tick_params(labelbottom=True)
        if index % across == 0 and ylabel:
            axes.set_ylabel(ylabel)


def add_legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]], columns: int, note: str) -> None:
    """The legend above the panels, with the note of the scale as its title."""
    # Made by hand: no panel need hold all lines, and a legend of all panels would name each several times.
    handles = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(
        handles,
        list(styles),
        loc="outside upper left",
        ncols=columns,
        title=fit_note(note, figure.get_size_inches()[0]),
        title_fontsize=6.5,
        alignment="left",
    )


def describe_accuracy(curves: pd.DataFrame) -> str:
    """The accuracy in words, for the picture's alternative text."""
    means = _last_epochs(select(curves, quantity="top1")).groupby(["row", "column"], sort=False).value.mean()
    cells: list[tuple[str, str]] = means.index.tolist()
    extremes = (int(means.argmin()), int(means.argmax()))
    low, high = (f"{means.iloc[index]:.2f} % ({plain(*cells[index])})" for index in extremes)
    return f"{len(means)} curves; after the last epoch from {low} to {high}."


def describe_losses(curves: pd.DataFrame) -> str:
    """The loss terms in words, for the picture's alternative text."""
    total = _last_epochs(select(curves, quantity="loss")).value
    terms = "; ".join(map(say_term, list_terms(curves))).replace("→", "to")
    return f"Terms: {terms}. Total loss after the last epoch: {total.min():.3g} to {total.max():.3g}."


def _last_epochs(curves: pd.DataFrame) -> pd.DataFrame:
    # Per run: recipes may have different numbers of epochs.
    return curves[curves.epoch == curves.groupby("run").epoch.transform("max")]

"""Training curves of a table: accuracy by epoch, and every loss term by epoch; seeds as a band."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib import ticker

from fbt_paper.figures.canvas import COLUMN_WIDTH, PAGE_WIDTH, fit_note, new_panels, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_ACROSS, PANELS_DOWN = 3, 8
"""A table with more columns or rows has no room for a panel per cell: its terms are on a page per column."""
LEAST_TICKS, MOST_TICKS = 3, 6
TICK_DIGITS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
HEADER = ("row", "column", "run", "seed", "epoch", "quantity", "value")
History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One cell's trainings: the history of each of its runs, by (run id, seed)."""

    row: str
    column: str
    histories: Mapping[tuple[str, int], History]


@dataclass(frozen=True)
class Band:
    """Mean, least and largest value over seeds at every epoch that at least one seed has reached."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def band_over_seeds(histories: Sequence[History], quantity: str) -> Band:
    """A quantity (top1, or term:<name>) over the seeds' histories, epoch by epoch."""
    by_epoch: dict[int, list[float]] = {}
    for history in histories:
        for record in history:
            value = read_quantity(record, quantity)
            if value is not None:
                by_epoch.setdefault(int(record["epoch"]), []).append(value)
    epochs = tuple(sorted(by_epoch))
    values = [by_epoch[epoch] for epoch in epochs]
    return Band(
        epochs,
        tuple(statistics.fmean(v) for v in values),
        tuple(min(v) for v in values),
        tuple(max(v) for v in values),
    )


def read_quantity(record: Mapping[str, Any], quantity: str) -> float | None:
    """One epoch's value of top1, loss, ..., or of a loss term as term:<name>; None where it is not there."""
    name = quantity.removeprefix("term:")
    value = (record.get("terms") or {}).get(name) if quantity.startswith("term:") else record.get(name)
    return None if value is None else float(value)


def list_terms(curves: Sequence[Curve]) -> list[str]:
    """Names of all loss terms of these trainings, in the order they first appear."""
    records = [record for curve in curves for history in curve.histories.values() for record in history]
    return list(dict.fromkeys(term for record in records for term in record.get("terms") or {}))


def list_quantities(curves: Sequence[Curve]) -> list[str]:
    """Everything that these trainings have by epoch: top1, the total loss, and every term."""
    return ["top1", "loss", *(f"term:{term}" for term in list_terms(curves))]


def curve_rows(curves: Sequence[Curve], quantities: Sequence[str]) -> list[tuple[object, ...]]:
    """Every value of these quantities as a row of a table (HEADER names the columns)."""
    return [
        (curve.row, curve.column, run, seed, record["epoch"], quantity, read_quantity(record, quantity))
        for curve in curves
        for (run, seed), history in curve.histories.items()
        for record in history
        for quantity in quantities
        if read_quantity(record, quantity) is not None
    ]


def say_term(term: str) -> str:
    """A loss term as a person reads it: teacher -> student, logits."""
    for kind in ("logits", "features"):
        pair = term.removesuffix(f"_{kind}")
        if pair != term and "_to_" in pair:
            return f"{pair.replace('_to_', ' → ')}, {kind}".replace("_", " ")
    return term.replace("_", " ")


def draw_accuracy(curves: Sequence[Curve], note: str) -> Figure:
    """Accuracy: one panel per column of the table, one line per row; the band spans the seeds."""
    return _draw_by_column(curves, "top1", "top-1 accuracy (%)", note)


def draw_losses(curves: Sequence[Curve], note: str) -> list[Figure]:
    """Loss terms, a panel per cell. Of a large table: the total loss, then a page of terms per column."""
    rows, columns = _keys(curves)
    if len(columns) <= PANELS_ACROSS and len(rows) <= PANELS_DOWN:
        return [_draw_cells(curves, [[(row, column) for column in columns] for row in rows], note)]
    pages = [_draw_by_column(curves, "loss", "total loss", note, alike=False)]
    for column in columns:
        cells = [(row, column) for row in rows]
        lines = [cells[start : start + PANELS_ACROSS] for start in range(0, len(cells), PANELS_ACROSS)]
        pages.append(_draw_cells([c for c in curves if c.column == column], lines, f"{note}: {column}"))
    return pages


def _draw_by_column(
    curves: Sequence[Curve], quantity: str, label: str, note: str, alike: bool = True
) -> Figure:
    """One panel per column, one line per row; `alike`: all panels have the same scale."""
    rows, columns = _keys(curves)
    across = min(len(columns), PANELS_ACROSS)
    down = -(-len(columns) // across)
    legend_lines = -(-len(rows) // (3 if across > 1 else 1))
    size = (COLUMN_WIDTH if across == 1 else PAGE_WIDTH, 1.75 * down + 0.14 * legend_lines + 0.3)
    figure, grid = new_panels(down, across, size, sharex=True, sharey=alike)
    styles = _styles(rows)
    for axes, column in zip(grid.flat, columns, strict=False):
        for curve in (curve for curve in curves if curve.column == column):
            _draw_band(axes, band_over_seeds(list(curve.histories.values()), quantity), styles[curve.row])
        axes.set_title(column, loc="left", weight="bold")
    _label(list(grid.flat), len(columns), across, label)
    _add_legend(figure, styles, 3 if across > 1 else 1, note)
    return figure


def _draw_cells(curves: Sequence[Curve], lines: Sequence[Sequence[tuple[str, str]]], note: str) -> Figure:
    """A panel per cell, laid out in `lines`; one line per loss term, logarithmic where all are above zero."""
    across, terms = max(map(len, lines)), list_terms(curves)
    width = COLUMN_WIDTH if across == 1 else PAGE_WIDTH
    legend = 2 if across == 1 else 4
    size = (width, 1.2 * len(lines) + 0.14 * -(-len(terms) // legend) + 0.5)
    figure, grid = new_panels(len(lines), across, size, sharex=True)
    styles, cells = _styles(terms), {(curve.row, curve.column): curve for curve in curves}
    shown = [place for line in lines for place in line]
    named = len({column for _, column in shown}) > 1
    for axes, place in zip(grid.flat, shown, strict=False):
        _draw_terms(axes, cells.get(place), terms, styles)
        axes.set_title("\n".join(place) if named else place[0], loc="left", fontsize=6)
    _label(list(grid.flat), len(shown), across, "")
    figure.supylabel("weighted loss term", fontsize=7)
    _add_legend(figure, {say_term(term): style for term, style in styles.items()}, legend, note)
    return figure


def _draw_terms(
    axes: Axes, curve: Curve | None, terms: Sequence[str], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    if curve is None or not any(curve.histories.values()):
        axes.text(0.5, 0.5, "no run", ha="center", va="center", transform=axes.transAxes, color="#666666")
        return
    bands = {term: band_over_seeds(list(curve.histories.values()), f"term:{term}") for term in terms}
    drawn = {term: band for term, band in bands.items() if band.epochs}
    for term, band in drawn.items():
        _draw_band(axes, band, styles[term])
    if drawn and min(min(band.low) for band in drawn.values()) > 0:
        _use_log_scale(axes)


def _use_log_scale(axes: Axes) -> None:
    """A logarithmic axis with three to six plain numbers; evenly spaced ones where it spans little."""
    axes.set_yscale("log")
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


def _draw_band(axes: Axes, band: Band, style: Mapping[str, Any]) -> None:
    axes.plot(band.epochs, band.mean, marker="." if len(band.epochs) < 12 else None, **style)
    if band.low != band.high:
        axes.fill_between(band.epochs, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)


def _keys(curves: Sequence[Curve]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(c.row for c in curves)), list(dict.fromkeys(c.column for c in curves))


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    cycle = list(pyplot.rcParams["axes.prop_cycle"])
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
            axes.xaxis.set_tick_params(labelbottom=True)
        if index % across == 0 and ylabel:
            axes.set_ylabel(ylabel)


def _add_legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]], columns: int, note: str) -> None:
    handles = [pyplot.Line2D([], [], **style) for style in styles.values()]
    figure.legend(
        handles,
        list(styles),
        loc="outside upper left",
        ncols=columns,
        title=fit_note(note, figure.get_size_inches()[0]),
        title_fontsize=6.5,
        alignment="left",
    )

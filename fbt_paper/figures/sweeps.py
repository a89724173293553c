"""How a result depends on one setting: accuracy by the setting's value, seeds as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from fbt_paper.figures.canvas import COLUMN_WIDTH, new_panels, plain
from fbt_paper.figures.curves import add_legend, draw_band, styles_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_sweep(scores: pd.DataFrame, setting: str, note: str) -> Figure:
    """A line per column of the table; scores has a row per run: column (label), value, score.

    Numbers stand at their values, anything else side by side.
    """
    columns = list(scores.column.unique())
    figure, grid = new_panels(1, 1, (COLUMN_WIDTH, 2.0 + 0.14 * len(columns)))
    axes, styles = grid.flat[0], styles_of(columns)
    values = list(dict.fromkeys(scores.value))
    is_scale = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    positions = values if is_scale else list(range(len(values)))
    at = dict(zip(values, positions, strict=True))
    for column, of_column in scores.groupby("column", sort=False):
        band = of_column.assign(at=of_column.value.map(at)).groupby("at").score.agg(["mean", "min", "max"])
        draw_band(axes, band, styles[str(column)])
    axes.set_xticks(positions, [str(value) for value in values])
    axes.set_xlabel(setting)
    axes.set_ylabel("top-1 accuracy (%)")
    add_legend(figure, styles, 1, note)
    return figure


def describe_sweep(scores: pd.DataFrame, setting: str) -> str:
    """A sweep in words, for the picture's alternative text."""
    means = scores.groupby(["column", "value"], sort=False).score.mean()
    cells: list[tuple[str, object]] = means.index.tolist()
    said = [
        f"{plain(column)}, {setting} {value}: {mean:.2f} %"
        for (column, value), mean in zip(cells, means, strict=True)
    ]
    return "; ".join(said) + "."

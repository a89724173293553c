"""CKA between the stages of teacher, fused model and student, before and after distillation.

Reads what `python -m fbt_core.measure.features similarity` wrote (an .npz); nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fbt_paper.figures.canvas import PAGE_WIDTH, fit_note, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
HEADER = ("when", "rows", "columns", "row_stage", "column_stage", "cka")
MOMENTS = ("before", "after")
PAIRS = (("teacher", "student"), ("teacher", "fused"), ("fused", "student"))
LABELS = {"fused": "fused model"}


def stage_names(model: str, count: int) -> list[str]:
    """S1..S4; the fused model's third feature passes through L2G before its S4."""
    if model == "fused":
        return ["S1", "S2", "S3", "L2G", "S4"][:count]
    return [f"S{stage}" for stage in range(1, count + 1)]


def similarity_rows(arrays: Mapping[str, Array]) -> list[tuple[object, ...]]:
    """Every value of every matrix as rows of a table (HEADER names the columns)."""
    rows: list[tuple[object, ...]] = []
    for when in MOMENTS:
        for first, second in PAIRS:
            matrix = arrays.get(f"{when}.{first}.{second}")
            if matrix is None:
                continue
            for i, j in np.ndindex(matrix.shape):
                names = stage_names(first, matrix.shape[0])[i], stage_names(second, matrix.shape[1])[j]
                rows.append((when, first, second, *names, float(matrix[i, j])))
    return rows


def draw_similarity(arrays: Mapping[str, Array], note: str) -> Figure:
    """Two rows (before, after) of three matrices with their values written in."""
    figure, grid = new_panels(2, len(PAIRS), (PAGE_WIDTH, 4.1))
    image = None
    for i, when in enumerate(MOMENTS):
        for j, (first, second) in enumerate(PAIRS):
            matrix = arrays.get(f"{when}.{first}.{second}")
            if matrix is None:
                # The fused model is missing if the method has none: the others keep their positions.
                grid[i][j].set_axis_off()
                continue
            image = _draw_matrix(grid[i][j], matrix, first, second)
            grid[i][j].set_title(f"{when} distillation", loc="left")
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.6, aspect=30, label="linear CKA", pad=0.01)
    figure.suptitle(fit_note(note, PAGE_WIDTH), fontsize=6.5, x=0.01, ha="left")
    return figure


def _draw_matrix(axes: Axes, matrix: Array, first: str, second: str) -> Any:
    # Fixed limits, so that equal colours mean equal values in all six.
    image = axes.imshow(matrix, vmin=0, vmax=1, origin="lower", aspect="auto")
    axes.grid(False)
    for i, j in np.ndindex(matrix.shape):
        # viridis is dark below and bright above.
        colour = "white" if matrix[i, j] < 0.6 else "black"
        axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(matrix.shape[1]), stage_names(second, matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]), stage_names(first, matrix.shape[0]))
    axes.set(xlabel=LABELS.get(second, second), ylabel=LABELS.get(first, first))
    return image


def describe(arrays: Mapping[str, Array]) -> str:
    """The figure in words, for its alternative text: how alike equal stages are, before and after."""
    texts = []
    for first, second in PAIRS:
        means = [
            _mean_of_equal_stages(arrays.get(f"{when}.{first}.{second}"), first, second) for when in MOMENTS
        ]
        if None not in means:
            names = f"{LABELS.get(first, first)} and {LABELS.get(second, second)}"
            texts.append(f"{names} {means[0]:.2f} before and {means[1]:.2f} after distillation")
    return f"Mean linear CKA of equal stages: {'; '.join(texts) or 'not measured'}."


def _mean_of_equal_stages(matrix: Array | None, first: str, second: str) -> float | None:
    """Mean over S1-S1 ... S4-S4, those that both have; None where there is no matrix."""
    if matrix is None:
        return None
    rows, columns = stage_names(first, matrix.shape[0]), stage_names(second, matrix.shape[1])
    return float(np.mean([matrix[rows.index(name), columns.index(name)] for name in rows if name in columns]))

"""From results on disk to one drawing's files: what `fbt draw NAME` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fbt_core.run_files import read_json
from fbt_paper.config.figures import FeaturesFigure
from fbt_paper.config.load import ConfigError, Problem
from fbt_paper.figures import curves, dots, features, similarity, taxonomy
from fbt_paper.figures.canvas import save_pages, styled, write_numbers
from fbt_paper.plan.figures import Drawing, FigurePlan
from fbt_paper.tables.collect import Collected, Entry, collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOKE_NOTE = "scale smoke: tiny networks on Fashion-MNIST, not the paper's data"


def draw(plan: FigurePlan, name: str) -> list[Path]:
    """Draw one figure in the project's style; returns the files written."""
    drawing = plan.drawings[name]
    with styled():
        return PAINTERS[drawing.kind](plan, drawing)


def note_of(plan: FigurePlan, title: str) -> str:
    """The line in a figure that says what it shows and at which scale."""
    scale = SMOKE_NOTE if plan.flow.scale == "smoke" else "scale paper"
    return f"{pretty(title)} ({scale})"


def pretty(label: str) -> str:
    """A label of config/ as it is drawn: arrows, and L_MSE with a subscript."""
    text = label.replace("->", "→")
    for loss in ("L_MSE", "L_InfoNCE", "L_OFA", "L_FBT", "L_KL"):
        text = text.replace(loss, rf"$\mathcal{{L}}_{{{loss[2:]}}}$")
    return text.replace("K_t", "$K_t$").replace("K_s", "$K_s$").replace("K_f", "$K_f$")


def stems(plan: FigurePlan, drawing: Drawing) -> list[Path]:
    """Where the drawing's pictures go, without ending."""
    return [Path(stem) for stem in plan.pictures(drawing.name)]


def _save(pictures: Mapping[Path, Sequence[Figure]]) -> list[Path]:
    return [path for stem, pages in pictures.items() for path in save_pages(pages, stem)]


def claims_file(stem: Path) -> Path:
    """Where the appendix's statements about a features figure lie, with what was measured."""
    return stem.with_name(f"{stem.name}_claims.csv")


def _numbers(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.csv")


# ---------------------------------------------------------------- the kinds


def paint_taxonomy(plan: FigurePlan, drawing: Drawing) -> list[Path]:
    """Figure 1 from the facts of all methods."""
    (stem,) = stems(plan, drawing)
    methods = plan.flow.config.methods
    written = _save({stem: [taxonomy.draw_taxonomy(methods)]})
    return [*written, write_numbers(_numbers(stem), taxonomy.HEADER, taxonomy.taxonomy_rows(methods))]


def paint_features(plan: FigurePlan, drawing: Drawing) -> list[Path]:
    """Figure 2 and its numbers from the extracted arrays."""
    stem, numbers = stems(plan, drawing)
    arrays, networks = read_arrays(stem), shown_networks(plan, drawing)
    images, note = range(len(arrays["images"])), note_of(plan, drawing.title)
    written = _save(
        {
            stem: [features.draw_features(networks, arrays, images, note)],
            numbers: [features.draw_numbers(networks, arrays, note)],
        }
    )
    claims = [
        (c.statement, c.quantity, c.first_group, c.first, c.second_group, c.second, c.holds, c.positions)
        for c in features.check_claims(networks, arrays)
    ]
    return [
        *written,
        write_numbers(_numbers(numbers), features.HEADER, features.number_rows(networks, arrays)),
        write_numbers(claims_file(stem), features.CLAIM_HEADER, claims),
    ]


def shown_networks(plan: FigurePlan, drawing: Drawing) -> list[features.Shown]:
    """The networks of a features figure, in its order."""
    figure = plan.figure_of(drawing.name)
    if not isinstance(figure, FeaturesFigure):
        raise ConfigError([Problem("config/figures", drawing.name, "is no figure of features")])
    architectures = plan.flow.config.architectures
    return [
        features.Shown(n.architecture, n.letter, entry.title, entry.family, n.hierarchical)
        for n in figure.networks
        for entry in [architectures[n.architecture]]
    ]


def paint_similarity(plan: FigurePlan, drawing: Drawing) -> list[Path]:
    """CKA matrices before and after distillation from the extracted arrays."""
    (stem,) = stems(plan, drawing)
    arrays = read_arrays(stem)
    written = _save({stem: [similarity.draw_similarity(arrays, note_of(plan, drawing.title))]})
    return [*written, write_numbers(_numbers(stem), similarity.HEADER, similarity.similarity_rows(arrays))]


def read_arrays(stem: Path) -> dict[str, features.Array]:
    """What the extraction wrote beside the figure; a ConfigError names the file where it is missing."""
    path = stem.with_name(f"{stem.name}.npz")
    try:
        with np.load(path) as content:
            return dict(content)
    except (OSError, ValueError) as error:
        message = f"cannot be read ({error}); `snakemake {path}` makes it"
        raise ConfigError([Problem(str(path), "", message)]) from None


def paint_curves(plan: FigurePlan, drawing: Drawing) -> list[Path]:
    """Accuracy, loss terms and gaps of one table."""
    flow = plan.flow
    table = collect(flow.config, flow.plan, drawing.table, Path(flow.runs))
    turned = columns_are_methods(plan, drawing.table)
    trained, gaps = list_curves(table, Path(flow.runs), turned), list_dots(table, turned)
    accuracy, losses, dotted = stems(plan, drawing)
    gap = "gap\n(smoke)" if flow.scale == "smoke" else "gap"
    written = _save(
        {
            accuracy: [curves.draw_accuracy(trained, note_of(plan, f"{table.title}: accuracy by epoch"))],
            losses: curves.draw_losses(trained, note_of(plan, f"{table.title}: losses by epoch")),
            dotted: [dots.draw_dots(gaps, note_of(plan, f"{table.title}: ours against the paper"), gap)],
        }
    )
    score, *parts = curves.list_quantities(trained)
    return [
        *written,
        write_numbers(_numbers(accuracy), curves.HEADER, curves.curve_rows(trained, [score])),
        write_numbers(_numbers(losses), curves.HEADER, curves.curve_rows(trained, parts)),
        write_numbers(_numbers(dotted), dots.HEADER, dots.dot_rows(gaps)),
    ]


def columns_are_methods(plan: FigurePlan, table: str) -> bool:
    """Whether a table has its methods side by side (the grids): drawn with a panel per pair all the same."""
    entry = plan.flow.config.tables[table]
    return any(getattr(line, "method", None) for line in getattr(entry, "columns", ()))


def list_curves(table: Collected, runs: Path, turned: bool = False) -> list[curves.Curve]:
    """The histories behind every cell that has runs; turned: rows as panels."""
    found = []
    for row, row_label in table.rows:
        for column, column_label in table.columns:
            entry = table.entry(row, column)
            if entry.runs:
                histories = {key: history for run in entry.runs for key, history in [read_run(runs, run)]}
                line, panel = (column_label, row_label) if turned else (row_label, column_label)
                found.append(curves.Curve(pretty(line), pretty(panel), histories))
    return found


def read_run(runs: Path, run: str) -> tuple[tuple[str, int], curves.History]:
    """((run id, seed), history) of a finished run."""
    metrics = read_json(runs / run / "metrics.json") or {}
    return (run, int(metrics["spec"]["seed"])), metrics["history"]


def list_dots(table: Collected, turned: bool = False) -> list[dots.Dot]:
    """Every cell of a table that has a number of ours or of the paper; turned: rows as panels."""
    panels, lines = (table.rows, table.columns) if turned else (table.columns, table.rows)
    return [
        make_dot(pretty(line_label), pretty(panel_label), entry)
        for panel, panel_label in panels
        for line, line_label in lines
        for entry in [table.entry(panel, line) if turned else table.entry(line, panel)]
        if (entry.values or entry.reference) and not is_gain(entry)
    ]


def is_gain(entry: Entry) -> bool:
    """Whether the cell is a mean gain over other cells and not an accuracy."""
    return bool(entry.values) and not entry.runs


def make_dot(line: str, panel: str, entry: Entry) -> dots.Dot:
    """One cell as it is drawn."""
    paper = entry.reference.value if entry.reference else None
    return dots.Dot(line, panel, entry.mean, entry.deviation, len(entry.runs), paper)


PAINTERS: dict[str, Callable[[FigurePlan, Drawing], list[Path]]] = {
    "taxonomy": paint_taxonomy,
    "features": paint_features,
    "similarity": paint_similarity,
    "curves": paint_curves,
}

"""From results on disk to one drawing's files: what `fbt draw NAME KEY=FILE ...` does.

The rules in workflow/rules/figures.smk say which files a figure has and what they are called. Their keys are
pdf, png and csv, with the name of a further picture before them (losses_png), npz for the extracted arrays
that a figure is drawn from, and about for what the results page says of it. A file that is not asked for is
not written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fbt_core.errors import nearest
from fbt_core.files import write_text
from fbt_paper.config.figures import FeaturesFigure
from fbt_paper.config.load import ConfigError, Problem
from fbt_paper.config.records import AccuracyTable
from fbt_paper.figures import curves, dots, features, similarity, sweeps, taxonomy
from fbt_paper.figures.canvas import lay_out, plain, remove_note, save_pdf, save_png, styled
from fbt_paper.plan.figures import Drawing, FigurePlan
from fbt_paper.tables.frame import TableResults, as_csv, collect, histories, score_remark
from fbt_paper.tables.latex import SYMBOL
from fbt_paper.tables.leads import methods_side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINKS = {"claims_csv": "CSV of the statements below"}
"""What a link to a file is called, if not by its kind."""
Files = Mapping[str, Path]


@dataclass(frozen=True)
class Picture:
    """One picture: its pages (the PNG is the first), itself in words, numbers by the key of their file."""

    pages: Sequence[Figure]
    words: str
    part: str = ""
    """What its keys begin with, and what it shows besides the figure's title."""
    title: str = ""
    numbers: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Sentences that belong below the figure."""

    @property
    def keys(self) -> list[str]:
        """Keys of its files: PDF, PNG, numbers."""
        part = f"{self.part}_" if self.part else ""
        return [f"{part}pdf", f"{part}png", *self.numbers]


def draw(plan: FigurePlan, name: str, files: Files, style: str = "page") -> list[Path]:
    """Draw one figure in one of the project's styles; returns the files written."""
    drawing = plan.drawings[name]
    # Saving is inside as well: matplotlib reads savefig.* and the PDF's fonts only then.
    with styled(style):
        pictures = PAINTERS[drawing.kind](plan, drawing, files)
        # After drawing, as pictures know their keys; before saving, so that a typing error writes nothing.
        keys = {"about", "npz", *(key for picture in pictures for key in picture.keys)}
        if unknown := [key for key in files if key not in keys]:
            message = f"this figure has no such file; {nearest(unknown[0], keys)}"
            raise ConfigError([Problem("fbt draw", unknown[0], message)])
        for picture in pictures:
            if style == "paper":
                for page in picture.pages:
                    remove_note(page)
            save_picture(picture, files)
    if "about" in files:
        write_text(files["about"], json.dumps(describe(drawing, pictures, files), indent=1) + "\n")
    return [path for key, path in files.items() if key != "npz"]


def save_picture(picture: Picture, files: Files) -> None:
    """Write the picture's PDF, PNG and numbers, those that are asked for."""
    for figure in picture.pages:
        lay_out(figure)
    pdf, png, *tables = picture.keys
    if pdf in files:
        save_pdf(picture.pages, files[pdf])
    if png in files:
        save_png(picture.pages[0], files[png])
    for key in tables:
        if key in files:
            write_text(files[key], as_csv(picture.numbers[key]))


def describe(drawing: Drawing, pictures: Sequence[Picture], files: Files) -> dict[str, object]:
    """What the results page says of a figure: title, caption, and per picture its files and its words."""
    entries = []
    for picture in pictures:
        name = plain(", ".join(filter(None, [drawing.title.replace("->", "to"), picture.title])))
        pdf, png, *numbers = picture.keys
        linked = [pdf, *numbers, *(["npz"] if picture is pictures[0] else [])]
        entries.append(
            {
                "png": str(files.get(png, "")),
                "title": picture.title,
                "words": f"{name}. {picture.words}" if picture.words else name,
                "files": [
                    [files[key].name, LINKS.get(key, key.rpartition("_")[2].upper())]
                    for key in linked
                    if key in files
                ],
            }
        )
    notes = [note for picture in pictures for note in picture.notes]
    about = {"key": drawing.name, "kind": drawing.kind, "table": drawing.table}
    about |= {"title": drawing.title, "caption": drawing.caption}
    return {**about, "pictures": entries, "notes": notes}


def note_of(plan: FigurePlan, title: str) -> str:
    """The line in a figure that says what it shows and at which scale."""
    stand_ins = plan.flow.config.stand_ins
    what = f": {stand_ins}, not the paper's data" if stand_ins else ""
    return f"{pretty(title)} (scale {plan.flow.scale}{what})"


def pretty(label: str) -> str:
    """A label of config/ as it is drawn: arrows, and L_MSE with a subscript."""
    return SYMBOL.sub(_draw_symbol, label.replace("->", "→"))


def _draw_symbol(symbol: re.Match[str]) -> str:
    kind, name = symbol.groups()
    return rf"$\mathcal{{L}}_{{{name}}}$" if kind == "L" else f"${kind}_{name}$"


# ---------------------------------------------------------------- the kinds


def paint_taxonomy(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """Figure 1 from the facts of all methods."""
    methods = plan.flow.config.methods
    rows = pd.DataFrame(taxonomy.taxonomy_rows(methods), columns=taxonomy.HEADER)
    return [Picture([taxonomy.draw_taxonomy(methods)], taxonomy.describe(methods), numbers={"csv": rows})]


def paint_features(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """Figure 2 and its numbers from the extracted arrays."""
    arrays, networks = read_arrays(drawing, files), shown_networks(plan, drawing)
    images, note = range(len(arrays["images"])), note_of(plan, drawing.title) + say_sizes(networks, arrays)
    figure = plan.figure_of(drawing.name)
    overlay = isinstance(figure, FeaturesFigure) and figure.overlay
    checked = features.check_claims(networks, arrays)
    claims = [
        (c.statement, c.quantity, c.first_group, c.first, c.second_group, c.second, c.holds, c.positions)
        for c in checked
    ]
    rows = pd.DataFrame(features.number_rows(networks, arrays), columns=features.HEADER)
    maps = Picture(
        pages=[features.draw_features(networks, arrays, images, note, overlay)],
        words=features.describe_maps(networks, checked),
        notes=list(map(features.describe_claim, checked)),
    )
    numbers = Picture(
        pages=[features.draw_numbers(networks, arrays, note)],
        words=features.describe_numbers(rows),
        part="numbers",
        title="numbers",
        numbers={
            "numbers_csv": rows,
            "claims_csv": pd.DataFrame(claims, columns=features.CLAIM_HEADER),
        },
    )
    return [maps, numbers]


def say_sizes(networks: Sequence[features.Shown], arrays: features.Arrays) -> str:
    """At which input size the features were extracted, if not all networks took the same."""
    if "sizes" not in arrays or len(set(arrays["sizes"].tolist())) == 1:
        return ""
    sizes = dict(zip((network.title for network in networks), arrays["sizes"].tolist(), strict=True))
    largest = max(sizes.values())
    bound = ", ".join(f"{title} at its own {size}" for title, size in sizes.items() if size < largest)
    return f". Extracted at {largest} pixels, position tables interpolated; {bound}"


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


def paint_similarity(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """CKA matrices before and after distillation from the extracted arrays."""
    arrays = read_arrays(drawing, files)
    rows = pd.DataFrame(similarity.similarity_rows(arrays), columns=similarity.HEADER)
    figure = similarity.draw_similarity(arrays, note_of(plan, drawing.title))
    return [Picture([figure], similarity.describe(arrays), numbers={"csv": rows})]


def read_arrays(drawing: Drawing, files: Files) -> dict[str, features.Array]:
    """What the extraction wrote; a ConfigError names the file if it cannot be read."""
    if "npz" not in files:
        message = "is drawn from extracted arrays; name their file: npz=FILE"
        raise ConfigError([Problem("fbt draw", drawing.name, message)])
    try:
        with np.load(files["npz"]) as content:
            # Read while the file is open: an npz gives its arrays only when they are asked for.
            return dict(content)
    except (OSError, ValueError) as error:
        message = f"cannot be read ({error}); `snakemake {files['npz']}` makes it"
        raise ConfigError([Problem(str(files["npz"]), "", message)]) from None


def paint_curves(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """Accuracy and loss terms of one table."""
    flow = plan.flow
    table = collect(flow.config, flow.plan, drawing.table, Path(flow.runs))
    trained = list_curves(table, Path(flow.runs), columns_are_methods(plan, drawing.table))
    accuracy = trained.quantity == "top1"
    by_epoch = f"{table.title}: {{}} by epoch"
    return [
        Picture(
            pages=[curves.draw_accuracy(trained, note_of(plan, by_epoch.format("accuracy")))],
            words=curves.describe_accuracy(trained),
            numbers={"csv": trained[accuracy]},
        ),
        Picture(
            pages=curves.draw_losses(trained, note_of(plan, by_epoch.format("losses"))),
            words=curves.describe_losses(trained),
            part="losses",
            title="losses",
            numbers={"losses_csv": trained[~accuracy]},
        ),
    ]


def paint_sweeps(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """Each sweep of a table on a page of its own, accuracy by the setting's value."""
    flow = plan.flow
    entry = flow.config.tables[drawing.table]
    assert isinstance(entry, AccuracyTable)  # the plan lists no other
    table = collect(flow.config, flow.plan, drawing.table, Path(flow.runs))
    pages, words, numbers = [], [], []
    for rows in entry.sweeps.values():
        label, setting = rows[0].item_label, rows[0].swept
        scores = list_scores(table, {row.key: row.value for row in rows})
        note = note_of(plan, f"{label} by {setting}, {len(scores.seed.unique())} seeds")
        pages.append(sweeps.draw_sweep(scores, setting, note))
        words.append(f"{label}: {sweeps.describe_sweep(scores, setting)}")
        numbers.append(scores.assign(item=label, setting=setting))
    return [Picture(pages=pages, words=" ".join(words), numbers={"csv": pd.concat(numbers)})]


def list_scores(table: TableResults, values: Mapping[str, object]) -> pd.DataFrame:
    """A row per run of a sweep's rows (key -> value): column (label), value, seed, run and score."""
    frame = table.frame[table.frame.row.isin(values) & table.frame.run.notna()]
    columns = frame.column.map({key: pretty(label) for key, label in table.columns})
    swept = pd.Series([values[row] for row in frame.row], index=frame.index, dtype=object)
    return frame.assign(column=columns, value=swept)[["column", "value", "seed", "run", "score"]]


def paint_gaps(plan: FigurePlan, drawing: Drawing, files: Files) -> list[Picture]:
    """Ours against the paper, cell by cell of one table."""
    flow = plan.flow
    table = collect(flow.config, flow.plan, drawing.table, Path(flow.runs))
    gaps = list_dots(table, columns_are_methods(plan, drawing.table))
    note = note_of(plan, f"{drawing.title}. {score_remark(table.score)}")
    return [Picture([dots.draw_dots(gaps, note)], dots.describe(gaps), numbers={"csv": gaps})]


def columns_are_methods(plan: FigurePlan, table: str) -> bool:
    """Whether a table has its methods side by side (the grids): drawn with a panel per pair all the same."""
    entry = plan.flow.config.tables[table]
    return isinstance(entry, AccuracyTable) and methods_side_by_side(entry)


def list_curves(table: TableResults, runs: Path, turned: bool = False) -> pd.DataFrame:
    """The histories of a table's runs with labels as they are drawn; turned: rows as panels."""
    frame = histories(table, runs)
    rows = frame.row.map({key: pretty(label) for key, label in table.rows})
    columns = frame.column.map({key: pretty(label) for key, label in table.columns})
    if turned:
        rows, columns = columns, rows
    return frame.assign(row=rows, column=columns)


def list_dots(table: TableResults, turned: bool = False) -> pd.DataFrame:
    """Every cell of a table that has a number of ours or of the paper; turned: rows as panels."""
    cells = table.cells.reset_index()
    # A mean gain is a difference of accuracies and would lie far outside of an axis of accuracies.
    mean_gain = cells["mean"].notna() & (cells.seeds == 0)
    cells = cells[(cells["mean"].notna() | cells.printed.notna()) & ~mean_gain]
    rows, columns, panels = cells.row_label.map(pretty), cells.column_label.map(pretty), table.columns
    if turned:
        rows, columns, panels = columns, rows, table.rows
    frame = pd.DataFrame(
        {
            "row": rows,
            "column": columns,
            "ours": cells["mean"],
            "standard_deviation": cells.deviation,
            "seeds": cells.seeds,
            "paper": cells.printed,
            "gap": cells.gap,
        }
    )
    # Sorted by the table, not by what comes first: a line of skipped cells would change the order.
    order = {pretty(label): index for index, (_, label) in enumerate(panels)}
    return frame.sort_values("column", key=lambda labels: labels.map(order), kind="stable", ignore_index=True)


PAINTERS: dict[str, Callable[[FigurePlan, Drawing, Files], list[Picture]]] = {
    "taxonomy": paint_taxonomy,
    "features": paint_features,
    "similarity": paint_similarity,
    "curves": paint_curves,
    "sweeps": paint_sweeps,
    "gaps": paint_gaps,
}

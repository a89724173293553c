"""Figures: the numbers they draw, no text over another, vector text in the PDF, and which files there are."""

from __future__ import annotations

import csv
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text

from fbt_core.methods.registry import method_facts, method_names
from fbt_paper.config.load import CONFIG_FOLDER, ConfigError, load
from fbt_paper.figures import canvas, curves, dots, draw, features, similarity, sweeps, taxonomy
from fbt_paper.figures.canvas import PAGE_WIDTH, new_panels, remove_note, save_pdf, save_png, styled
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from fbt_paper.tables.frame import collect
from tests.test_paper.made_up_results import make_history, write_scale
from tests.test_paper.page_results import figure_files, write_results

LONG = [
    r"$\mathcal{L}_{MSE}$ in all intermediate features",
    r"$\mathcal{L}_{MSE}$ in the final features",
    "L in the final features after average pooling",
    "Student from scratch (Swin-P)",
]
PAIRS = ["Swin-T → ResNet18", "ViT-S → ResNet18", "ConvNeXt-T → Swin-P"]


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts that a figure draws whose boxes meet, and texts that leave the figure."""
    texts = drawn_texts(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer).shrunk(0.98, 0.8)) for text in texts]
    whole = figure.bbox.padded(1)
    outside = [(name, "the edge") for name, box in boxes if not _inside(box, whole)]
    met = [(a, b) for (a, first), (b, second) in itertools.combinations(boxes, 2) if first.overlaps(second)]
    return outside + met


def drawn_texts(figure) -> list[Text]:
    """The texts that really are drawn (not the labels of ticks outside the view)."""
    drawn: dict[int, Text] = {}
    draw_text = Text.draw

    def record(text: Text, *arguments, **options):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        return draw_text(text, *arguments, **options)

    figure.canvas.draw()  # lays the figure out; texts are recorded when it is drawn as it stays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.canvas.draw()
    return list(drawn.values())


def _inside(box, whole) -> bool:
    return box.x0 >= whole.x0 and box.y0 >= whole.y0 and box.x1 <= whole.x1 and box.y1 <= whole.y1


def made_up_dots(columns: int = 3, times: int = 1) -> pd.DataFrame:
    cells = [
        (row, column, 70.0 + 2 * i, 0.6 if i else None, 3, None if (i, j) == (1, 1) else 68.0 + 5 * i)
        for j, column in enumerate(PAIRS[:columns])
        for i, row in enumerate(LONG)
    ]
    header = ["row", "column", "ours", "standard_deviation", "seeds", "paper"]
    frame = pd.DataFrame(cells * times, columns=header)
    return frame.assign(gap=frame.ours - frame.paper)


def make_curves(cells: dict[tuple[str, str], dict[tuple[str, int], list[dict]]]) -> pd.DataFrame:
    """The curves of these cells' histories, by (row, column) and then by (run, seed)."""
    rows = [
        (*cell, *run, record["epoch"], quantity, value)
        for cell, histories in cells.items()
        for run, history in histories.items()
        for record in history
        for quantity, value in {
            **{name: record[name] for name in ("top1", "loss") if name in record},
            **{f"term:{term}": value for term, value in record["terms"].items()},
        }.items()
    ]
    return pd.DataFrame(rows, columns=["row", "column", "run", "seed", "epoch", "quantity", "value"])


def made_up_curves(seeds: int = 3, epochs: int = 5, columns: int = 3) -> pd.DataFrame:
    terms = (
        "labels",
        "teacher_to_student_logits",
        "teacher_to_student_features",
        "fused_to_student_features",
    )
    return make_curves(
        {
            (row, column): {
                (f"{i}-{j}-{s}", s): make_history(epochs, 80 - 3 * i, s, terms) for s in range(seeds)
            }
            for j, column in enumerate(PAIRS[:columns])
            for i, row in enumerate(LONG)
        }
    )


SHOWN = [
    features.Shown("resnet18", "A", "ResNet18", "cnn", True),
    features.Shown("swin_t", "C", "Swin-T", "msa", True),
    features.Shown("mixer_b16", "F", "Mixer-B/16", "mlp", False),
]


def made_up_arrays(images: int = 2, networks: list[features.Shown] = SHOWN) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"images": draws.integers(0, 255, (images, 64, 64, 3), dtype=np.uint8)}
    arrays["grids"] = np.array([(4, 4), (4, 4), (4, 4), (2, 2)])
    for network in networks:
        sides = (16, 8, 4, 2) if network.hierarchical else (4, 4, 4, 4)
        for stage, side in enumerate(sides, start=1):
            arrays[f"{network.key}.stage{stage}"] = draws.random((images, side, side))
        arrays[f"{network.key}.groups"] = draws.random((images, 3, sides[-1], sides[-1]))
        arrays[f"{network.key}.entropy"] = draws.random(4)
        arrays[f"{network.key}.locality"] = draws.random(4)
        arrays[f"{network.key}.group_similarity"] = np.array(0.5)
        arrays[f"{network.key}.stage_similarity"] = np.full((4, 4), 0.25) + 0.75 * np.eye(4)
    return arrays


def made_up_matrices() -> dict[str, np.ndarray]:
    sizes = {"teacher": 4, "student": 4, "fused": 5}
    return {
        f"{when}.{a}.{b}": np.linspace(0, 1, sizes[a] * sizes[b]).reshape(sizes[a], sizes[b])
        for when in similarity.MOMENTS
        for a, b in similarity.PAIRS
    }


NOTE = "Table 4: training curves (scale smoke: tiny networks on Fashion-MNIST, not the paper's data)"
FIGURES = {
    "taxonomy": lambda: taxonomy.draw_taxonomy({name: method_facts(name) for name in method_names()}),
    "dots": lambda: dots.draw_dots(made_up_dots(), NOTE),
    "dots of a large table": lambda: dots.draw_dots(made_up_dots(times=6), NOTE),
    "dots of one column": lambda: dots.draw_dots(made_up_dots(1), NOTE),
    "accuracy": lambda: curves.draw_accuracy(made_up_curves(), NOTE),
    "accuracy of one pair": lambda: curves.draw_accuracy(made_up_curves(columns=1), NOTE),
    "losses": lambda: curves.draw_losses(made_up_curves(), NOTE)[0],
    "losses of one pair": lambda: curves.draw_losses(made_up_curves(columns=1), NOTE)[0],
    "features": lambda: features.draw_features(SHOWN, made_up_arrays(), [0, 1], NOTE),
    "numbers": lambda: features.draw_numbers(SHOWN, made_up_arrays(), NOTE),
    "similarity": lambda: similarity.draw_similarity(made_up_matrices(), NOTE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_meets_another_or_leaves_the_figure(name):
    with styled():
        figure = FIGURES[name]()
        assert figure.get_size_inches()[0] <= PAGE_WIDTH + 0.01
        assert overlaps(figure) == []


TABLES = [key for key, table in load(CONFIG_FOLDER).tables.items() if table.kind == "accuracy"]
LARGE = ("cifar100", "imagenet", "modern")
"""Tables of a hundred cells and more: their curves take a minute to draw."""
TERMS = (
    "labels",
    *(f"{pair}_logits" for pair in ("teacher_to_fused", "teacher_to_student", "fused_to_student")),
)


def curves_of(plan: FigurePlan, table: str) -> pd.DataFrame:
    """Made-up trainings in the shape and with the labels of a real table."""
    entry, turned = plan.flow.config.tables[table], draw.columns_are_methods(plan, table)
    histories = {("run", 0): make_history(5, terms=TERMS), ("again", 1): make_history(5, seed=1, terms=TERMS)}
    cells = [(draw.pretty(r.label), draw.pretty(c.label)) for r in entry.rows for c in entry.columns]
    return make_curves({(cell[::-1] if turned else cell): histories for cell in cells})


@pytest.mark.parametrize(
    "table", [pytest.param(table, marks=[pytest.mark.slow] if table in LARGE else []) for table in TABLES]
)
def test_curves_of_every_real_table_fit_a_page(plan, table):
    made = curves_of(plan, table)
    columns = set(made.column)
    with styled():
        accuracy, pages = curves.draw_accuracy(made, NOTE), curves.draw_losses(made, NOTE)
        small = len(columns) <= 3 and made.row.nunique() <= 8
        assert len(pages) == (1 if small else 1 + len(columns))
        for figure in (accuracy, *pages):
            assert figure.get_size_inches()[0] <= PAGE_WIDTH + 0.01
            assert figure.get_size_inches()[1] <= 11
        for figure in (accuracy, *pages[:2]):
            assert overlaps(figure) == []


def test_pages_are_one_pdf_and_the_first_is_the_picture(tmp_path):
    with styled():
        pages = [dots.draw_dots(made_up_dots(columns), NOTE) for columns in (1, 3)]
        two = draw.Picture(pages, "", numbers={})
        draw.save_picture(two, {"pdf": tmp_path / "both.pdf", "png": tmp_path / "both.png"})
        draw.save_picture(
            draw.Picture([dots.draw_dots(made_up_dots(1), NOTE)], ""), {"png": tmp_path / "first.png"}
        )
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "both.pdf").read_bytes())) == 2
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "first.png").read_bytes()


def shown_ticks(axis) -> list[float]:
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_ticklocs() if low <= tick <= high]


@pytest.mark.parametrize("values", [(1.0, 1.4), (0.9, 2.1), (0.2, 21.0), (0.01, 300.0), (2.31, 2.32)])
def test_axes_of_losses_have_three_ticks_at_least(values):
    history = [{"epoch": i, "top1": 1.0, "terms": {"labels": value}} for i, value in enumerate(values, 1)]
    with styled():
        (figure,) = curves.draw_losses(make_curves({("a", "b"): {("run", 0): history}}), NOTE)
        figure.canvas.draw()
        assert 3 <= len(shown_ticks(figure.axes[0].yaxis)) <= 9


def test_loss_terms_are_named_for_people():
    assert curves.say_term("teacher_to_student_logits") == "teacher → student, logits"
    assert curves.say_term("fused_labels") == "fused labels"


def test_labels_are_wrapped_around_mathematics():
    label = r"$\mathcal{L}_{MSE}$ in the final features after average pooling"
    lines = canvas.wrap_label(label).split("\n")
    assert len(lines) >= 2 and lines[0].startswith(r"$\mathcal{L}_{MSE}$ in")
    assert " ".join(lines) == label


def test_markers_at_the_edge_are_not_cut():
    with styled():
        axes = dots.draw_dots(made_up_dots(1), NOTE).axes[0]
        assert all(not line.get_clip_on() for line in axes.lines)


def test_the_overlap_check_finds_an_overlap():
    with styled():
        figure, ((axes,),) = new_panels(1, 1, (3.0, 2.0))
        axes.text(0.5, 0.5, "one over the other")
        axes.text(0.52, 0.5, "two over the other")
        assert ("one over the other", "two over the other") in overlaps(figure)


def test_pdf_holds_text_and_the_same_figure_gives_the_same_bytes(tmp_path):
    for stem in ("a", "b"):
        with styled():
            figure = dots.draw_dots(made_up_dots(), NOTE)
            save_pdf([figure], tmp_path / f"{stem}.pdf")
            save_png(figure, tmp_path / f"{stem}.png")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type0" in pdf or b"/CIDFontType2" in pdf  # embedded TrueType: text can be searched and edited
    assert b"/Type3" not in pdf
    assert pdf == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_colours_are_told_apart_without_colour():
    with styled():
        cycle = list(rcParams["axes.prop_cycle"])
    assert len({(entry["color"], entry["linestyle"]) for entry in cycle}) == len(cycle) == 21
    colours = [entry["color"].lstrip("#") for entry in cycle]
    assert colours[:3] == ["0072B2", "D55E00", "009E73"]
    assert all(a["linestyle"] != b["linestyle"] for a, b in itertools.pairwise(cycle))


# ---------------------------------------------------------------- numbers


def test_band_is_mean_and_range_over_seeds():
    first = [{"epoch": 1, "top1": 10.0, "terms": {"a": 1.0}}, {"epoch": 2, "top1": 30.0, "terms": {}}]
    second = [{"epoch": 1, "top1": 20.0, "terms": {"a": 3.0}}]
    made = make_curves({("row", "column"): {("one", 0): first, ("two", 1): second}})
    band = curves.band_over_seeds(curves.select(made, quantity="top1"))
    assert band.index.tolist() == [1, 2] and band["mean"].tolist() == [15.0, 30.0]
    assert (band["min"].tolist(), band["max"].tolist()) == ([10.0, 30.0], [20.0, 30.0])
    assert curves.band_over_seeds(curves.select(made, quantity="term:a"))["mean"].tolist() == [2.0]


def test_every_value_of_the_histories_is_in_the_frame(plan):
    table = collect(plan.flow.config, plan.flow.plan, "table4", Path(plan.flow.runs))
    frame = draw.list_curves(table, Path(plan.flow.runs))
    epochs = {run: plan.flow.spec(run).recipe.epochs for run in table.frame.run.dropna()}
    taught = [run for run in epochs if plan.flow.spec(run).teacher]
    # accuracy, total loss, the loss on labels; with a teacher one term more
    assert len(frame) == 3 * sum(epochs.values()) + sum(epochs[run] for run in taught)
    assert set(frame.quantity) == {"top1", "loss", "term:cross_entropy", "term:logits"}
    assert set(frame.row) == {draw.pretty(label) for _, label in table.rows}


def test_taxonomy_lists_every_method_with_a_teacher_and_fbt_last():
    facts = {name: method_facts(name) for name in method_names()}
    rows = taxonomy.taxonomy_rows(facts)
    assert {row[0] for row in rows} == set(method_names()) - {"scratch"}
    assert rows[-1][0] == "fbt" and rows[-1][2] == 3


def test_the_direct_way_goes_round_the_fused_model():
    facts = {"kd": method_facts("kd"), "fbt": method_facts("fbt")}
    with styled():
        figure = taxonomy.draw_taxonomy(facts)
        arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 1 + 3  # KD: teacher to student; FBT: to the fused model, from it, and round it


def test_fbt_is_the_feature_method_for_any_pair_beside_the_one_that_the_appendix_names():
    """The appendix: FBT is "one of the pioneer works in feature-based generic distillation"."""
    facts = {name: method_facts(name) for name in method_names()}
    generic = {name for name, entry in facts.items() if "features" in entry.transfers and entry.generic}
    # PAT and SRD are not in the appendix.
    assert generic - {"pat", "srd"} == {"fbt", "lowpass"}


def test_figures_in_words():
    said = taxonomy.describe({name: method_facts(name) for name in method_names()})
    assert "Three-level (teacher, fused model, student): FBT;" in said
    assert "made for similar architectures, adapted here: FCFD, FitNet, ReviewKD, SimKD" in said
    matrices = made_up_matrices()
    matrices["after.teacher.student"] = np.eye(4)
    said = similarity.describe(matrices)
    assert said.startswith("Mean linear CKA of equal stages: teacher and student 0.50 before and 1.00 after")
    assert similarity.describe({}) == "Mean linear CKA of equal stages: not measured."


def test_a_new_method_appears_by_itself(tmp_path):
    mine = method_facts("kd").model_copy(update={"title": "Mine", "losses": ("my loss",)})
    with styled():
        figure = taxonomy.draw_taxonomy({"kd": method_facts("kd"), "mine": mine})
        texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"Mine", "my loss", "KD"} <= texts


def test_feature_maps_are_drawn_from_0_to_1():
    assert features.normalise(np.array([[2.0, 4.0], [3.0, 2.0]])).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    assert features.normalise(np.full((2, 2), 7.0)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_figure_for_a_paper_is_serif_and_leaves_its_caption_to_the_paper():
    for name in ("accuracy", "features", "numbers", "similarity", "dots"):
        with styled("paper"):
            figure = FIGURES[name]()
            remove_note(figure)
            texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
            assert {text.get_family()[0] for text in texts} == {"serif"}
        assert not any("scale smoke" in text.get_text() for text in texts)


def test_maps_are_laid_over_their_image_and_enlarged_smoothly():
    arrays = made_up_arrays(1)
    with styled():
        figure = features.draw_features(SHOWN, arrays, [0], NOTE, overlay=True)
        image, stage1, *_ = [axes for axes in figure.axes if axes.images]
    assert len(image.images) == 1 and len(stage1.images) == 2
    below, above = stage1.images
    assert np.allclose(below.get_array(), arrays["images"][0].mean(axis=2))
    assert above.get_interpolation() == "bicubic" and above.get_extent() == below.get_extent()


def test_drawn_maps_are_the_extracted_ones():
    arrays = made_up_arrays(1)
    with styled():
        figure = features.draw_features(SHOWN, arrays, [0], NOTE)
        drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(drawn) == len(SHOWN) * 8
    assert np.array_equal(drawn[0], arrays["images"][0])
    assert np.allclose(drawn[1], features.normalise(arrays["resnet18.stage1"][0]))
    assert np.allclose(drawn[8 + 7], features.normalise(arrays["swin_t.groups"][0, 2]))


def test_numbers_and_claims():
    arrays = made_up_arrays()
    arrays["resnet18.locality"] = np.array([0.9] * 4)
    arrays["swin_t.locality"] = arrays["mixer_b16.locality"] = np.array([0.1] * 4)
    arrays["mixer_b16.stage_similarity"] = np.full((4, 4), 0.9)
    rows = features.number_rows(SHOWN, arrays)
    assert len(rows) == 3 * (4 + 4 + 2)
    local, uniform, groups = features.check_claims(SHOWN, arrays)
    assert (local.first, local.second, local.holds) == (pytest.approx(0.9), pytest.approx(0.1), True)
    assert (uniform.first, uniform.second, uniform.holds) == (pytest.approx(0.9), pytest.approx(0.25), True)
    assert not groups.holds  # all alike: the claim does not hold
    assert (local.positions, uniform.positions, groups.positions) == (
        "4 x 4, 4 x 4, 4 x 4, 2 x 2",
        "",
        "2 x 2",
    )


def test_similarity_rows_hold_every_value():
    rows = similarity.similarity_rows(made_up_matrices())
    assert len(rows) == 2 * (16 + 20 + 20)
    assert ("after", "teacher", "fused", "S4", "L2G", pytest.approx(18 / 19)) in rows


# ---------------------------------------------------------------- plan and files


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FigurePlan:
    return FigurePlan(write_results(tmp_path_factory.mktemp("figures")))


def test_gaps_are_drawn_where_numbers_can_be_compared_and_agree_with_the_table(tmp_path):
    assert FigurePlan(Flow({"scale": "smoke"})).pattern("gaps") == "none"
    plan = FigurePlan(write_results(tmp_path, scale="paper"))
    files = figure_files(plan, "curves_table4_gaps")
    written = draw.draw(plan, "curves_table4_gaps", files)
    assert written == list(files.values()) and all(path.stat().st_size for path in written)
    table = collect(plan.flow.config, plan.flow.plan, "table4", Path(plan.flow.runs))
    with Path(plan.folder, "curves_table4_gaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = {row["row"]: row for row in rows}
    cell = table.cells.loc["student_from_scratch", "top1"]
    row = shown["Student from scratch (Swin-P)"]
    assert float(row["ours"]) == pytest.approx(cell["mean"], abs=1e-3)
    assert float(row["gap"]) == pytest.approx(cell.gap, abs=1e-3)
    assert row["seeds"] == "1"
    assert "mean gap (ours minus paper)" in files["about"].read_text()


def test_a_sweep_is_drawn_from_the_scores_of_its_rows(tmp_path):
    flow = Flow({})
    flow.results, flow.runs = os.fspath(tmp_path), os.fspath(tmp_path / "runs")
    write_scale(flow, ["sensitivity"])
    plan = FigurePlan(flow)
    files = {key: tmp_path / f"sweep.{key}" for key in ("pdf", "png", "csv")}
    assert draw.draw(plan, "sweeps_sensitivity", files) == list(files.values())
    table = collect(plan.flow.config, plan.flow.plan, "sensitivity", Path(plan.flow.runs))
    lines = list(csv.DictReader(files["csv"].open()))
    assert [line["value"] for line in lines] == [value for value in ("1", "1.25", "1.5", "2") for _ in "01"]
    scores = [float(line["score"]) for line in lines]
    assert scores == pytest.approx(list(table.frame.score), abs=1e-3)


def test_values_that_are_no_numbers_stand_side_by_side():
    scores = pd.DataFrame({"column": "Pair", "value": ["vit", "swin"], "seed": 0, "score": [70.0, 72.0]})
    with styled():
        figure = sweeps.draw_sweep(scores, "block", "L2G")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["vit", "swin"]
    assert list(axes.lines[0].get_xdata()) == [0, 1]
    assert sweeps.describe_sweep(scores, "block") == "Pair, block vit: 70.00 %; Pair, block swin: 72.00 %."


def test_only_the_files_asked_for_are_drawn(plan, tmp_path):
    assert draw.draw(plan, "figure1", {"png": tmp_path / "one.png"}) == [tmp_path / "one.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    with pytest.raises(ConfigError, match="pgn: this figure has no such file; valid: about, csv, npz"):
        draw.draw(plan, "figure1", {"pgn": tmp_path / "one.png"})


def test_drawing_figure_2_and_similarity_from_their_arrays(plan):
    keys = {network.architecture for network in plan.figure_of("figure2").networks}
    arrays = made_up_arrays(1)
    for key in keys:
        arrays |= {
            f"{key}.{name.split('.')[1]}": v for name, v in arrays.items() if name.startswith("mixer_b16.")
        }
    Path(plan.folder).mkdir(parents=True, exist_ok=True)
    files = figure_files(plan, "figure2")
    np.savez(files["npz"], **arrays)
    assert {path.suffix for path in draw.draw(plan, "figure2", files)} == {".pdf", ".png", ".csv", ".json"}
    (name, *_) = plan.names("similarity")
    files = figure_files(plan, name)
    np.savez(files["npz"], **made_up_matrices())
    assert Path(plan.folder, f"{name}.png") in draw.draw(plan, name, files)


def test_missing_arrays_are_named_with_their_fix(plan):
    name = plan.names("similarity")[-1]
    with pytest.raises(ConfigError, match=rf"{name}\.npz.*cannot be read.*`snakemake"):
        draw.draw(plan, name, figure_files(plan, name))


SURROUNDINGS = {
    "a notebook's terminal": ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, ""),
    "a backend that is not there": ({"MPLBACKEND": "nonsense"}, ""),
    "a user's style": ({}, "text.usetex: True\naxes.facecolor: yellow\nfont.size: 30\nbackend: TkAgg\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_figures_depend_on_our_style_alone(tmp_path, name):
    environment, settings = SURROUNDINGS[name]
    (tmp_path / "matplotlibrc").write_text(settings)
    for folder, variables in (("plain", {}), ("odd", {**environment, "MPLCONFIGDIR": str(tmp_path)})):
        (tmp_path / folder).mkdir()
        command = [sys.executable, "-m", "fbt_paper.cli", "draw", "figure1", f"png={tmp_path / folder}/a.png"]
        known = {key: value for key, value in os.environ.items() if not key.startswith("MPL")}
        done = subprocess.run(command, env={**known, **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain/a.png").read_bytes() == (tmp_path / "odd/a.png").read_bytes()


def test_figures_need_only_runs_that_some_table_plans(plan):
    for drawing in plan.drawings.values():
        assert set(drawing.runs) <= set(plan.flow.plan.runs)
    assert len(plan.drawings["figure2"].runs) == 7


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_both_scales_have_all_figures(scale):
    plan = FigurePlan(Flow({"scale": scale}, CONFIG_FOLDER))
    names = plan.drawn("index")
    assert {"figure1", "figure2", "curves_table4"} <= set(names)
    assert any(name.startswith("similarity_") for name in names)
    assert ("curves_cifar100" in names) == (scale == "paper")
    assert plan.extraction("figure2").startswith(f"stages --runs results/{scale}/runs")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "figure2.yaml",
            "architecture: swin_t,",
            "architecture: swin_q,",
            r"networks\[2\].architecture.*swin_t",
        ),
        ("figure2.yaml", "dataset: cifar100", "dataset: cifar10", "unknown dataset 'cifar10'.*did you mean"),
        (
            "figure2.yaml",
            "kind: features",
            "kind: feature",
            "'feature' is not valid here.*did you mean 'features'",
        ),
        (
            "similarity.yaml",
            "row: fbt, column: swin_t__resnet18",
            "row: fbt, column: x",
            "has no cell 'fbt, x'",
        ),
        ("figure1.yaml", "title: Figure 1", "heading: Figure 1", "heading"),
    ],
)
def test_mistakes_in_a_figures_file_are_named(tmp_path, file, old, new, message):
    shutil.copytree(CONFIG_FOLDER, tmp_path / "config")
    path = tmp_path / "config" / "figures" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        FigurePlan(Flow({}, tmp_path / "config"))


def test_labels_become_mathematics():
    assert draw.pretty("L_MSE in K_t -> x") == r"$\mathcal{L}_{MSE}$ in $K_t$ → x"
    assert not re.search(r"[<>]", draw.pretty("Swin -> ResNet18"))

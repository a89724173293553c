"""A cell's own uncertainty, which cells lead beyond noise, and gains over training without a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fbt_paper.claims.show import to_latex as claims_to_latex
from fbt_paper.claims.verdicts import Evidence, judge_all
from fbt_paper.config.claims import load_claims
from fbt_paper.plan.targets import Flow
from fbt_paper.tables import compare
from fbt_paper.tables.frame import TableResults
from fbt_paper.tables.latex import to_latex
from fbt_paper.tables.render import to_csv, to_markdown
from fbt_paper.tables.results import collect_tables
from tests.test_paper.made_up_results import write_run
from tests.test_paper.test_tables import compile_latex

IMAGES = 1_000


@pytest.fixture
def flow(tmp_path) -> Flow:
    flow = Flow({})
    flow.results, flow.runs = str(tmp_path), str(tmp_path / "runs")
    return flow


def write_cell(flow: Flow, table: str, row: str, column: str, top1: float, shared: bool = True) -> None:
    """Runs whose last epoch gets `top1` % of the images right; unshared: other images than the others get."""
    for run in flow.plan.tables[table].cells[row, column].runs:
        write_top1(flow, run, top1, shared)


def write_top1(flow: Flow, run: str, top1: float, shared: bool = True) -> None:
    folder = write_run(Path(flow.runs), flow.plan.runs[run], top1=top1)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["spec"]["dataset"]["test_images"] = IMAGES
    metrics["best"]["top1"], metrics["last"]["top1"] = top1 + 0.5, top1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    right = np.arange(IMAGES) < 10 * top1
    predictions = np.where(right if shared else right[::-1], 1, 2).astype(np.uint8)
    np.savez(folder / "predictions.npz", last=predictions, labels=np.ones(IMAGES, np.uint8))


def collected(flow: Flow, table: str) -> TableResults:
    (results,) = collect_tables(flow, [table])
    assert isinstance(results, TableResults)
    return results


def write_table_5(flow: Flow, swin: float, vit: float, shared: bool = True) -> TableResults:
    for column in ("swin_t__resnet18", "vit_s__resnet18", "convnext_t__swin_p"):
        write_cell(flow, "table5", "swin_block", column, swin)
        write_cell(flow, "table5", "vit_block", column, vit, shared)
    return collected(flow, "table5")


def test_a_lead_beyond_noise_is_bold(flow):
    table = write_table_5(flow, 80.0, 70.0)
    assert set(table.leads) == {("swin_block", column) for column, _ in table.columns}
    assert set(table.leads.values()) == {"leads"}
    assert "**80.50 ± 1.25†** (" in to_markdown(table) and "*70.50" not in to_markdown(table)
    assert r"\textbf{80.50 $\pm$ 1.25\dag{}} (" in to_latex(table) and r"\underline" not in to_latex(table)
    assert "Bold: above every other of its pair beyond noise" in to_markdown(table)


def test_what_cannot_be_separated_from_the_best_is_tied_with_it(flow):
    table = write_table_5(flow, 80.0, 79.0, shared=False)
    assert len(table.leads) == 6 and set(table.leads.values()) == {"tied"}
    assert "*80.50 ± 1.25†* (" in to_markdown(table) and "**" not in to_markdown(table).split("\n| ", 1)[1]
    assert to_latex(table).count(r"\underline{") == 6


def test_a_teacher_competes_with_nobody(flow):
    for row, _ in flow.plan.tables["table4"].cells:
        write_cell(flow, "table4", row, "top1", 95.0 if row == "teacher" else 70.0)
    assert ("teacher", "top1") not in collected(flow, "table4").leads


def test_seeds_give_a_deviation_and_one_seed_the_error_of_its_test_images(flow):
    for row, _ in flow.plan.tables["table4"].cells:
        write_cell(flow, "table4", row, "top1", 80.0)
    cells = collected(flow, "table4").cells
    assert cells.spread["mse_final", "top1"] == cells.deviation["mse_final", "top1"] == 0.0
    assert cells.spread["teacher", "top1"] == pytest.approx(100 * (0.805 * 0.195 / IMAGES) ** 0.5)
    text = to_markdown(collected(flow, "table4"))
    assert "80.50 ± 0.00" in text and "80.50 ± 1.25†" in text and "0.00†" not in text


def test_the_best_epochs_optimism_is_named_with_its_size(flow):
    remarks = write_table_5(flow, 80.0, 70.0).remarks
    assert "above the last epoch's by 0.50 points on average, by 0.50 at most" in " ".join(remarks)


def test_gains_are_over_the_same_recipe_without_a_teacher(flow):
    table = write_table_5(flow, 80.0, 70.0)
    assert table.cells.gain.isna().all() and table.cells.printed_gain["swin_block", "swin_t__resnet18"] > 0
    for run in {flow.plan.scratch_of(run) for run in flow.plan.tables["table5"].runs}:
        write_top1(flow, run, 77.0)
    table = collected(flow, "table5")
    assert table.cells.gain["swin_block", "swin_t__resnet18"] == pytest.approx(3.0)
    assert table.cells.gain["vit_block", "convnext_t__swin_p"] == pytest.approx(-7.0)
    (line,) = [
        line for line in compare.to_markdown([table], "").splitlines() if "Swin Block | Swin-T" in line
    ]
    printed = table.cells.printed["swin_block", "swin_t__resnet18"] - 74.01
    assert line.endswith(f"| +3.00 | {printed:+.2f} |")


def test_a_run_without_a_teacher_gains_over_nothing(flow):
    plan = flow.plan
    scratch = plan.tables["cifar100"].cells["swin_t__resnet18", "scratch"].runs[0]
    assert plan.scratch_of(scratch) is None
    of_fbt = plan.scratch_of(plan.tables["cifar100"].cells["vit_s__resnet18", "fbt"].runs[0])
    assert of_fbt == scratch


def test_an_unfinished_cell_says_how_it_stands_and_the_rest_is_counted(flow):
    write_table_5(flow, 80.0, 70.0)
    run = flow.plan.tables["table5"].cells["vit_block", "swin_t__resnet18"].runs[0]
    (Path(flow.runs) / run / "metrics.json").unlink()
    (table,) = collect_tables(flow, ["table5"], {run: "epoch 3/8, 2 min left"})
    text = to_markdown(table)
    assert r"\[epoch 3/8, 2 min left\] (81.05)" in text and "5 of 6 cells are filled." in text
    assert ("vit_block", "swin_t__resnet18") not in table.leads
    assert "epoch 3/8, 2 min left" in to_latex(table) and to_csv(table).count("\n") == 7


@pytest.mark.slow
def test_the_claims_as_a_latex_table_compile_within_the_text(flow, tmp_path):
    write_table_5(flow, 80.0, 70.0)
    judgements = judge_all(load_claims(flow.config), Evidence(flow.config, flow.plan, Path(flow.results)))
    text = claims_to_latex(judgements, "scale smoke")
    assert text.count("not measured") > 5 and r"\label{tab:claims}" in text
    (tmp_path / "tex").mkdir()
    assert "Overfull" not in compile_latex(tmp_path / "tex", text)

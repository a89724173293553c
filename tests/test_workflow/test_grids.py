"""The grid tables and their comparison, built by the real rules from made-up results of their runs."""

import csv
import json
import re
from statistics import fmean

import pytest

from fbt_paper.config.load import load
from fbt_paper.plan.runs import Plan, plan
from tests.test_workflow.workflow_copy import WorkflowCopy

GRIDS = ("ablation", "cifar100", "homogeneous", "imagenet", "modern", "sensitivity")
PLAN = plan(load())


def write_results(copy: WorkflowCopy, planned: Plan) -> None:
    """What the engine would leave, in the order the runs are trained; top-1 follows from the run's id."""
    for run in planned.needed(run for key in GRIDS for run in planned.tables[key].runs):
        folder = copy.folder / "results/smoke/runs" / run
        folder.mkdir(parents=True)
        score = {"epoch": 1, "top1": top1_of(run), "top5": 99.0}
        spec = planned.runs[run].model_dump(mode="json")
        (folder / "metrics.json").write_text(json.dumps({"spec": spec, "best": score, "last": score}))
        (folder / "weights.safetensors").touch()


def top1_of(run: str) -> float:
    return 60 + int(run[-4:], 16) % 2000 / 100


@pytest.mark.slow
def test_the_grids_are_built_from_their_results(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "workflow")
    write_results(copy, PLAN)
    tables = [f"results/smoke/tables/{key}.md" for key in GRIDS]
    targets = [*tables, "results/smoke/comparison_grid.md"]
    assert copy.planned(*targets) == {"build_table": len(GRIDS), "compare_with_paper": 1}, (
        "nothing is trained"
    )
    done = copy.snakemake("--cores", "2", *targets)
    assert done.returncode == 0, done.stdout
    for key in GRIDS:
        lines = list(csv.DictReader((copy.folder / f"results/smoke/tables/{key}.csv").open()))
        shown = {(line["row"], line["column"]): line["top1"] for line in lines if line["runs"]}
        cells = PLAN.tables[key].cells
        means = {pair: fmean(map(top1_of, cell.runs)) for pair, cell in cells.items()}
        assert {pair: float(top1) for pair, top1 in shown.items()} == pytest.approx(means, abs=0.006)
        assert any(line["printed"] for line in lines) == bool(load().references.get(key))
    text = (copy.folder / targets[-1]).read_text()
    assert len(re.findall("^## ", text, re.MULTILINE)) == len(GRIDS) and "SMOKE" in text

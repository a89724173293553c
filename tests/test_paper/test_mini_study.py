"""docs/mini-study: what is shipped of the study at scale mini is whole, and its verdicts follow from it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fbt_core.run_files import METRICS_FILE, PREDICTIONS_FILE
from fbt_core.spec import parse_spec
from fbt_paper.bundle.runs import NAMES
from fbt_paper.claims.show import intervals_to_csv, to_csv
from fbt_paper.claims.verdicts import Evidence, judge_all
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.targets import Flow

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "docs/mini-study"
RUNS = sorted(path.parent for path in STUDY.glob(f"runs/*/{METRICS_FILE}"))


@pytest.fixture(scope="module")
def flow() -> Flow:
    """The plan of the study: scale mini with the settings that lie beside its results."""
    return Flow(json.loads((STUDY / "settings.json").read_text()), ROOT / "config")


def test_every_shipped_run_is_planned_and_what_its_predictions_say(flow):
    assert len(RUNS) > 100
    for folder in RUNS:
        text = (folder / METRICS_FILE).read_text()
        metrics = json.loads(text)
        spec = parse_spec(json.dumps(metrics["spec"]))
        assert spec.id == folder.name in flow.plan.runs
        with np.load(folder / PREDICTIONS_FILE) as arrays:
            predicted = {name: arrays[name] for name in arrays.files}
        for epoch in ("best", "last"):
            right = 100 * (predicted[epoch] == predicted["labels"]).mean()
            assert metrics[epoch]["top1"] == pytest.approx(right, abs=0.021), (folder.name, epoch)
        assert len(metrics["history"]) == spec.recipe.epochs
        # Settings were committed before; and no run says whose machine it was.
        assert metrics["provenance"]["git_dirty"] is False
        assert not [name for name in NAMES if re.search(rf'"{name}": "', text)]
        assert {path.name for path in folder.iterdir()} == {METRICS_FILE, PREDICTIONS_FILE}


def test_one_commit_one_machine_and_the_same_versions():
    made = [json.loads((folder / METRICS_FILE).read_text()) for folder in RUNS]
    assert len({metrics["provenance"]["git_sha"] for metrics in made}) == 1
    assert len({json.dumps(metrics["provenance"]["versions"], sort_keys=True) for metrics in made}) == 1
    assert {metrics["execution"]["threads"] for metrics in made} == {1}


def test_students_began_after_the_last_teacher_had_ended():
    made = [json.loads((folder / METRICS_FILE).read_text()) for folder in RUNS]
    teachers = {run for metrics in made if metrics["spec"]["teacher"] for run in _taught_by(metrics)}
    first = {metrics["run"]: metrics for metrics in made if metrics["run"] in teachers}
    ended = [m["provenance"]["finished"] for m in first.values() if m["spec"]["teacher"] is None]
    assert len(ended) >= 4
    began = [m["provenance"]["started"] for m in made if m["run"] not in teachers and m["spec"]["teacher"]]
    assert max(ended) < min(began)


def _taught_by(metrics):
    return parse_spec(json.dumps(metrics["spec"])).needed_runs()


def test_the_shipped_verdicts_follow_from_the_shipped_runs(flow):
    # Weights are not shipped, and no verdict reads them.
    claims = ClaimPlan(flow).of("claims")
    judgements = judge_all(claims, Evidence(flow.config, flow.plan, STUDY))
    assert to_csv(judgements) == (STUDY / "claims.csv").read_text()
    assert intervals_to_csv(judgements) == (STUDY / "claims_intervals.csv").read_text()
    # All statements of the appendix: the study is whole.
    assert [judgement.claim.key for judgement in judgements if judgement.verdict == "not measured"] == []

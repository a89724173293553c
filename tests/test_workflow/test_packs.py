"""Packs in real Snakemake, with an engine that pretends: what trains together, what never again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fbt_paper.plan.targets import Flow
from tests.test_workflow.workflow_copy import WorkflowCopy

TARGET = "results/smoke/tables/mini.md"
TABLE = """kind: accuracy
title: Mini
caption: One pair.
target: tables
corner: Method
base: {dataset: cifar100, teacher: swin_t, student: resnet18}
columns:
  - {key: top1, label: top-1}
rows:
  - {key: kd, label: KD, method: kd}
  - {key: dist, label: DIST, method: dist}
  - {key: rkd, label: RKD, method: rkd}
  - {key: dkd, label: DKD, method: dkd}
"""
OTHERS = """  - {key: ofa, label: OFA, method: ofa}
  - {key: fbt, label: FBT, method: fbt}
"""
PACK = {size: ("--config", f"execution={{pack: {size}}}", "--") for size in (1, 2, 8)}


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> WorkflowCopy:
    """One table of four runs and their teacher, trained in packs of up to eight; the run of RKD fails."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("packs") / "failed")
    for folder in ("tables", "figures"):
        shutil.rmtree(copy.folder / "config" / folder)
        (copy.folder / "config" / folder).mkdir()
    (copy.folder / "config/claims.yaml").write_text("claims: []\n")
    (copy.folder / "config/tables/mini.yaml").write_text(TABLE)
    done = copy.snakemake("--cores", "2", *PACK[8], TARGET, FAILING_RUN=runs(copy)["rkd"])
    assert done.returncode == 1
    assert "error: data/7.jpg: this run is meant to fail" in done.stdout
    return copy


@pytest.fixture(scope="module")
def built(failed, tmp_path_factory) -> WorkflowCopy:
    """The same after a second call, in which nothing fails."""
    copy = failed.clone(tmp_path_factory.mktemp("packs") / "built")
    before = copy.trained()
    done = copy.snakemake("--cores", "2", *PACK[8], TARGET)
    assert done.returncode == 0, done.stdout
    assert copy.trained() == [*before, runs(copy)["rkd"]]
    assert not re.search(r"rule (pack|publish):", done.stdout)
    return copy


@pytest.fixture
def copy(built, tmp_path) -> WorkflowCopy:
    return built.clone(tmp_path / "copy")


def runs(copy: WorkflowCopy) -> dict[str, str]:
    """Ids of the table's runs by row."""
    cells = Flow({}, copy.folder / "config").plan.tables["mini"].cells
    return {row: cell.runs[0] for (row, _), cell in cells.items()}


def packs(output: str) -> list[set[str]]:
    """The runs of each pack that Snakemake announces."""
    return [set(text.split()) for text in re.findall(r"pack \w+ trains together: (.*)", output)]


def test_a_failed_run_fails_alone(failed):
    ids, folder = runs(failed), failed.folder / "results/smoke"
    (marker,) = folder.glob("packs/*.done")
    members = json.loads(marker.read_text())["members"]
    assert {run: ending["state"] for run, ending in members.items()} == {
        run: "failed" if row == "rkd" else "ready" for row, run in ids.items()
    }
    assert json.loads(marker.with_suffix(".json").read_text())["runs"] == list(ids.values())
    published = {row for row, run in ids.items() if (folder / f"runs/{run}/metrics.json").exists()}
    assert published == {"kd", "dist", "dkd"}
    assert len(failed.trained()) == 4 and not (failed.folder / TARGET).exists()


def test_the_next_call_trains_the_failed_run_alone_and_builds_the_table(built):
    assert (built.folder / TARGET).exists()


@pytest.mark.parametrize("size", PACK)
def test_another_size_of_packs_trains_nothing_again(built, size):
    assert "Nothing to be done" in built.snakemake("-n", *PACK[size], TARGET).stdout


def test_a_removed_row_makes_its_table_again_and_trains_nothing(copy):
    """Without `input` among the rerun triggers: the runs that a table shows are among its params."""
    (copy.folder / "config/tables/mini.yaml").write_text(
        TABLE.replace("  - {key: rkd, label: RKD, method: rkd}\n", "")
    )
    assert copy.planned(*PACK[8], TARGET) == {"build_table": 1}


def test_a_deleted_result_is_published_again_and_a_deleted_run_trained_alone(copy):
    ids, folder = runs(copy), copy.folder / "results/smoke/runs"
    (folder / ids["kd"] / "metrics.json").unlink()
    shutil.rmtree(folder / ids["dkd"])
    targets = [f"results/smoke/runs/{ids[row]}/metrics.json" for row in ("kd", "dkd")]
    before = copy.trained()
    done = copy.snakemake("--cores", "2", *PACK[8], *targets)
    assert done.returncode == 0, done.stdout
    assert copy.trained() == [*before, ids["dkd"]]
    assert set(re.findall(r"rule (\w+):", done.stdout)) == {"publish", "train"}


def test_added_rows_form_a_pack_that_keeps_its_runs_until_it_has_ended(copy):
    table = copy.folder / "config/tables/mini.yaml"
    table.write_text(TABLE + OTHERS)
    two = {runs(copy)[row] for row in ("ofa", "fbt")}
    asked = copy.snakemake("-n", *PACK[8], TARGET)
    assert packs(asked.stdout) == [two]
    assert len(list((copy.folder / "results/smoke/packs").glob("*.json"))) == 1, "a dry run writes nothing"
    copy.snakemake("--cores", "2", *PACK[8], TARGET, KILLED_PACKS="1")
    # Another row, before the two: their pack has been submitted, so it trains alone.
    table.write_text(TABLE + "  - {key: cc, label: CC, method: cc}\n" + OTHERS)
    asked = copy.snakemake("-n", *PACK[8], TARGET)
    assert packs(asked.stdout) == [two]
    assert re.findall(r"rule train:.*?run=(\S+)", asked.stdout, re.S) == [runs(copy)["cc"]]
    # One row alone is asked for: nothing else is trained. And whoever wants no packs gets none.
    result = f"results/smoke/runs/{runs(copy)['ofa']}/metrics.json"
    assert packs(copy.snakemake("-n", *PACK[8], result).stdout) == [{runs(copy)["ofa"]}]
    alone = copy.snakemake("-n", *PACK[1], TARGET).stdout
    assert packs(alone) == [] and len(re.findall(r"rule train:", alone)) == 3
    # On a node the job's own Snakemake finds the pack by its id, whatever the configuration says by then.
    (record,) = [
        path for path in (copy.folder / "results/smoke/packs").glob("*.json") if not marker_of(path).exists()
    ]
    table.write_text("rows: [")
    done = node_job(copy, record.stem)
    assert done.returncode == 0, done.stdout
    assert set(json.loads(marker_of(record).read_text())["members"]) == two


def marker_of(record: Path) -> Path:
    return record.with_suffix(".done")


def node_job(copy: WorkflowCopy, pack: str):
    """What an executor starts on a node for a pack: an inner Snakemake that plans anew."""
    inner = ["--nolock", "--no-hooks", "--force", "--cores", "1", "--mode", "remote"]
    target = ["--target-jobs", f"pack:pack={pack}", "--allowed-rules", "pack"]
    return copy.snakemake(f"results/smoke/packs/{pack}.done", *target, *inner)

"""Packs in real Snakemake, with an engine that pretends: what trains together, what never again."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from cluster import wait_for
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


def with_table(folder: Path, table: str) -> WorkflowCopy:
    """A workflow with this table and nothing else."""
    copy = WorkflowCopy.make(folder)
    for part in ("tables", "figures"):
        shutil.rmtree(copy.folder / "config" / part)
        (copy.folder / "config" / part).mkdir()
    (copy.folder / "config/claims.yaml").write_text("claims: []\n")
    (copy.folder / "config/tables/mini.yaml").write_text(table)
    return copy


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> WorkflowCopy:
    """One table of four runs and their teacher, trained in packs of up to eight; the run of RKD fails."""
    copy = with_table(tmp_path_factory.mktemp("packs") / "failed", TABLE)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_results_trained_alone_are_kept_in_packs_and_back(tmp_path):
    """From `pack: 1` to 8, where added rows train together, and back to 1."""
    copy = with_table(tmp_path / "copy", TABLE)
    assert copy.snakemake("--cores", "2", *PACK[1], TARGET).returncode == 0
    alone = copy.trained()
    assert len(alone) == 5 and not (copy.folder / "results/smoke/packs").exists()
    assert "Nothing to be done" in copy.snakemake("--cores", "2", *PACK[8], TARGET).stdout
    (copy.folder / "config/tables/mini.yaml").write_text(TABLE + OTHERS)
    done = copy.snakemake("--cores", "2", *PACK[8], TARGET)
    added = {runs(copy)[row] for row in ("ofa", "fbt")}
    assert done.returncode == 0 and packs(done.stdout) == [added]
    assert copy.trained()[:5] == alone and set(copy.trained()[5:]) == added and len(copy.trained()) == 7
    assert "Nothing to be done" in copy.snakemake("--cores", "2", *PACK[1], TARGET).stdout


TWO_STUDENTS = TABLE.replace(", teacher: swin_t, student: resnet18}", "}").replace(
    "  - {key: top1, label: top-1}\n",
    """  - {key: one, label: ResNet18, teacher: swin_t, student: resnet18}
  - {key: two, label: MobileNetV2, teacher: swin_t, student: mobilenetv2}
""",
)


def check_packs_of_a_profile(folder: Path, *arguments: str, **environment: str) -> list[dict]:
    """Two packs of four train at once; their controller dies, rows are added, and the next call goes on.

    Returns the executor's entries of the two packs.
    """
    copy = with_table(folder, TWO_STUDENTS)
    for profile in ("slurm", "workstation"):
        (folder / profile).symlink_to(f"profiles/{profile}")
    words = [
        *arguments,
        "--submitit-poll-seconds",
        "1",
        "--config",
        "scale=smoke",
        "execution={pack: 4}",
        "--",
    ]
    (folder / "packs_wait").touch()
    with (folder / "controller.log").open("w") as log:
        controller = copy.start(*words, TARGET, stdout=log, **environment)
    try:
        at_work = lambda: len(devices(folder)) == 2  # noqa: E731
        wait_for(at_work, 240, f"two packs at work; see {folder / 'controller.log'}")
    finally:
        controller.kill()
        controller.wait(30)
    composed = {path.stem: path.read_text() for path in folder.glob("results/smoke/packs/*.json")}
    (folder / "config/tables/mini.yaml").write_text(TWO_STUDENTS + OTHERS)
    assert copy.snakemake("--unlock", **environment).returncode == 0
    (folder / "packs_wait").unlink()
    done = copy.snakemake(*words, TARGET, **environment)
    assert done.returncode == 0 and (folder / TARGET).exists(), done.stdout
    # The teacher, eight runs and four added ones, each trained once; the two packs are as they were.
    assert len(copy.trained()) == len(set(copy.trained())) == 13
    assert {stem: (folder / f"results/smoke/packs/{stem}.json").read_text() for stem in composed} == composed
    assert len(list(folder.glob("results/smoke/packs/*.done"))) == 3
    entries = [json.loads(path.read_text()) for path in folder.glob(".snakemake/submitit/journal/*.json")]
    return [entry for entry in entries if entry["rule"] == "pack" and entry["wildcards"]["pack"] in composed]


def devices(folder: Path) -> list[str]:
    """The GPUs that each pack was given."""
    return [path.read_text() for path in folder.glob("results/smoke/packs/*.devices")]


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_packs_through_slurm_are_one_array(tmp_path, start_cluster):
    conf = str(start_cluster().conf)
    entries = check_packs_of_a_profile(tmp_path / "copy", "--profile", "slurm", SLURM_CONF=conf)
    assert len({entry["job_id"].split("_")[0] for entry in entries}) == 1
    assert {entry["job_id"].split("_")[1] for entry in entries} == {"0", "1"}
    assert set(devices(tmp_path / "copy")) == {"0", "1"}


@pytest.mark.slow
def test_packs_on_a_workstation_have_a_gpu_each(tmp_path):
    names = [f"fake-{os.getpid()}-packs-{number}" for number in range(2)]
    arguments = ("--profile", "workstation", "--submitit-gpus", ",".join(names))
    assert len(check_packs_of_a_profile(tmp_path / "copy", *arguments)) == 2
    assert set(devices(tmp_path / "copy")) == set(names)


def marker_of(record: Path) -> Path:
    return record.with_suffix(".done")


def node_job(copy: WorkflowCopy, pack: str):
    """What an executor starts on a node for a pack: an inner Snakemake that plans anew."""
    inner = ["--nolock", "--no-hooks", "--force", "--cores", "1", "--mode", "remote"]
    target = ["--target-jobs", f"pack:pack={pack}", "--allowed-rules", "pack"]
    return copy.snakemake(f"results/smoke/packs/{pack}.done", *target, *inner)

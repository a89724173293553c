"""The rules: what is run, in which order, and what a change makes run again."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from fbt_core.spec import parse_spec
from fbt_paper.config.load import load
from fbt_paper.plan.failures import FIX, explain_failures
from fbt_paper.plan.frozen import timm_tags
from fbt_paper.plan.runs import plan
from fbt_paper.plan.targets import Flow, execution_settings
from tests.test_workflow.workflow_copy import ROOT, WorkflowCopy

TABLES = ("table3", "table5", "table6")
TARGETS = [f"results/smoke/tables/{table}.md" for table in TABLES]
PLAN = plan(load())
RUNS = PLAN.needed(run for table in TABLES for run in PLAN.tables[table].runs)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> WorkflowCopy:
    """Tables 3, 5 and 6, built once."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("workflow") / "built")
    done = copy.snakemake("--cores", "2", *TARGETS)
    assert done.returncode == 0, done.stdout
    return copy


@pytest.fixture
def copy(built, tmp_path) -> WorkflowCopy:
    return built.clone(tmp_path / "copy")


def test_every_run_is_trained_once_and_after_what_it_needs(built):
    trained = built.trained()
    assert sorted(trained) == sorted(RUNS)
    for run in trained:
        assert all(trained.index(needed) < trained.index(run) for needed in PLAN.runs[run].needed_runs())


def test_a_second_phase_starts_from_the_first_phases_weights(built):
    (second,) = PLAN.tables["table3"].cells["e", "top1"].runs
    first = PLAN.runs[second].student.weights.removeprefix("run:")
    read = json.loads((built.folder / "results/smoke/runs" / second / "read.json").read_text())
    assert first in read and PLAN.runs[first].method.name == "fbt"


def test_the_tables_hold_the_results(built):
    text = (built.folder / "results/smoke/tables/table5.csv").read_text()
    for run in PLAN.tables["table5"].runs:
        top1 = json.loads((built.folder / "results/smoke/runs" / run / "metrics.json").read_text())["best"][
            "top1"
        ]
        assert f"{top1:.2f}" in text and run in text


def test_a_second_snakemake_has_nothing_to_do(built):
    assert "Nothing to be done" in built.snakemake("--cores", "2", *TARGETS).stdout


HARMLESS = {
    "a comment in the rules": ("workflow/rules/train.smk", "# Training:", "# Trainings:", 0),
    "a comment in a method": ("fbt_core/methods/fbt.py", '"""FBT, Fuse', '"""FBT: Fuse', 0),
    "a comment in the recipes": ("config/scales/smoke.yaml", "# Scale smoke", "# At scale smoke", 0),
    "a printed number": ("config/tables/table5.reference.csv", "81.05", "81.06", 1),
    "a label": ("config/tables/table5.yaml", "label: ViT Block", "label: ViT block", 1),
    "the number of workers": ("config/config.yaml", "workers: 8", "workers: 3", 0),
    "a data root": ("config/config.yaml", "cifar100: null", "cifar100: /data", 0),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_changes_no_number_retrains_nothing(what, copy):
    file, old, new, tables = HARMLESS[what]
    copy.replace(file, old, new)
    jobs = copy.planned(*TARGETS)
    assert "train" not in jobs
    assert jobs.get("build_table", 0) == tables


RETRAINING = {
    "a parameter": ("config/tables/table5.yaml", "{block: vit}", "{block: vit, gamma: 1.5}", {"vit_block"}),
    "a revision of KD": (
        "config/methods.yaml",
        "extra_parameters: false\n  revision: 1\n  parameters:\n    label_weight",
        "extra_parameters: false\n  revision: 2\n  parameters:\n    label_weight",
        {"a", "d"},
    ),
}


@pytest.mark.parametrize("what", RETRAINING)
def test_what_changes_a_number_retrains_its_runs_only(what, copy):
    file, old, new, rows = RETRAINING[what]
    copy.replace(file, old, new)
    cells = [cell for table in TABLES for cell in PLAN.tables[table].cells.values() if cell.row in rows]
    method = {PLAN.runs[run].method.name for cell in cells for run in cell.runs}
    needed = PLAN.needed(run for cell in cells for run in cell.runs)
    expected = [run for run in needed if PLAN.runs[run].method.name in method]
    assert copy.planned(*TARGETS)["train"] == len(expected)


def test_copied_results_without_their_times_train_nothing(built, tmp_path):
    """`cp -r` gives every file a new time, in any order: the worst is that what a run needs is newest.

    Without Snakemake's records: its checksums of small files would hide what happens to weights of 100 MB.
    """
    copied = built.clone(tmp_path / "copied")
    shutil.rmtree(copied.folder / ".snakemake")
    needed = {needed for run in RUNS for needed in PLAN.runs[run].needed_runs()}
    for file in (copied.folder / "results").rglob("*"):
        time = 1.5e9 if file.parent.name in needed else 1e9
        os.utime(file, (time, time))
    assert "train" not in copied.planned(*TARGETS)


def test_a_deleted_result_is_made_again_and_a_deleted_teachers_weights_are_not(copy):
    (student,) = PLAN.tables["table5"].cells["vit_block", "vit_s__resnet18"].runs
    (teacher,) = PLAN.runs[student].needed_runs()
    result = f"results/smoke/runs/{student}/metrics.json"
    assert result in Flow({}).tables_target
    (copy.folder / "results/smoke/runs" / teacher / "weights.safetensors").unlink()
    assert "train" not in copy.planned(*TARGETS, result)
    (copy.folder / result).unlink()
    assert copy.planned(*TARGETS, result)["train"] >= 2


def test_a_table_asked_for_by_name_trains_a_run_that_was_deleted(copy):
    """Then nothing is left to do: that something was missing is not remembered."""
    shutil.rmtree(copy.folder / "results/smoke/runs" / PLAN.tables["table5"].runs[0])
    assert copy.planned(TARGETS[1]) == {"train": 1, "build_table": 1}
    assert copy.snakemake("--cores", "2", TARGETS[1]).returncode == 0
    assert "Nothing to be done" in copy.snakemake("--cores", "2", TARGETS[1]).stdout


def test_every_rule_that_shows_results_asks_how_they_stand():
    """But for figures that are drawn from extracted arrays, or from no results."""
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    rules = {rule.split(":")[0]: rule for rule in text.split("\nrule ")[1:]}
    shown = {name for name, rule in rules.items() if " shows=" in rule}
    asking = {name for name, rule in rules.items() if " standing=" in rule}
    assert shown - asking == {"plot_taxonomy", "plot_features", "plot_similarity"}
    assert asking - shown == {"extract_features"}


def fbt(copy: WorkflowCopy, *arguments: str) -> str:
    """What `fbt` prints in this folder."""
    command = [sys.executable, "-m", "fbt_paper.cli", *arguments]
    done = subprocess.run(command, cwd=copy.folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_teacher_trained_again_with_other_weights_is_named_wherever_its_students_are_shown(copy):
    student = PLAN.tables["table5"].cells["vit_block", "swin_t__resnet18"].runs[0]
    (teacher,) = PLAN.runs[student].needed_runs()
    warning = f"{teacher} was trained again and has other weights now than those that"
    assert warning not in fbt(copy, "status", "table5")

    # The teacher alone is trained, under its id; none of its students.
    shutil.rmtree(copy.folder / "results/smoke/runs" / teacher)
    before = copy.trained()
    target = f"results/smoke/runs/{teacher}/metrics.json"
    assert copy.snakemake("--cores", "2", target, OTHER_WEIGHTS="!").returncode == 0
    assert copy.trained() == [*before, teacher]

    said = " ".join(fbt(copy, "status", "table5").split())
    assert warning in said and student in said.partition(warning)[2]
    assert copy.snakemake("--cores", "2", TARGETS[1]).returncode == 0
    assert warning in (copy.folder / TARGETS[1]).read_text().replace("\\_", "_")
    assert copy.trained() == [*before, teacher]
    assert "Nothing to be done" in copy.snakemake("--cores", "2", TARGETS[1]).stdout


def test_a_deleted_teacher_whose_students_are_finished_is_awaited_by_nobody(copy):
    """`fbt status` and Snakemake say the same."""
    (teacher,) = PLAN.runs[PLAN.tables["table5"].runs[0]].needed_runs()
    shutil.rmtree(copy.folder / "results/smoke/runs" / teacher)
    assert "Nothing to be done" in copy.snakemake("--cores", "2", *TARGETS).stdout
    said = fbt(copy, "status", "table5")
    assert "All done." in said and "waiting" not in said

    # Of a student that is deleted as well both are trained.
    student = PLAN.tables["table5"].runs[0]
    shutil.rmtree(copy.folder / "results/smoke/runs" / student)
    assert "2 waiting" in fbt(copy, "status", "table5")


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "failing")
    failing = PLAN.tables["table5"].cells["vit_block", "swin_t__resnet18"].runs[0]
    done = copy.snakemake("--cores", "2", TARGETS[1], FAILING_RUN=failing)
    assert done.returncode == 1
    assert sorted(copy.trained()) == sorted(set(PLAN.needed(PLAN.tables["table5"].runs)) - {failing})
    assert not (copy.folder / TARGETS[1]).exists()
    # What a user reads last: the run, its error with the file and the fix, the log, what to do.
    assert done.stdout.splitlines()[-3:] == [
        "train table5/vit_block/swin_t__resnet18 failed: data/7.jpg: this run is meant to fail; "
        "put the file back",
        f"  its log: results/smoke/logs/train/{failing}.log",
        FIX,
    ]


def test_many_failures_a_group_and_jobs_that_were_ended_from_outside(tmp_path):
    """As Snakemake gives them to `onerror`; a log without an error ends where the job was ended."""
    (tmp_path / "cut").write_text("error: an earlier one\nepoch 3\n")
    (tmp_path / "killed").write_text("epoch 3\n")

    def job(name: str, *log: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, log=[str(tmp_path / file) for file in log], wildcards={})

    group = SimpleNamespace(jobs=[job("a", "cut"), job("b", "killed")])
    assert explain_failures(PLAN, [group, job("c"), job("d", "missing")]).splitlines()[2:-1] == [
        "a failed: an earlier one",
        f"  its log: {tmp_path}/cut",
        "b failed: epoch 3",
        f"  its log: {tmp_path}/killed",
        "c failed: it wrote no log; the message above says more",
        "d failed: it wrote no log; the message above says more",
        f"  its log: {tmp_path}/missing",
    ]
    many = explain_failures(PLAN, [job(f"job{number}") for number in range(7)])
    assert many.count(" failed: ") == 5 and "\n2 more failed; `fbt status` lists them.\n" in many


def test_a_mistake_in_the_configuration_stops_snakemake_with_one_message(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "wrong")
    copy.replace("config/tables/table5.yaml", "block: vit", "blockx: vit")
    done = copy.snakemake("--cores", "1", TARGETS[1])
    assert done.returncode == 1
    assert (
        "config/tables/table5.yaml: rows[0].parameters.blockx: unknown parameter of fbt; valid:"
        in done.stdout
    )
    assert not (copy.folder / "results").exists()


def test_a_run_that_no_table_needs_is_told(copy):
    done = copy.snakemake("-n", "results/smoke/runs/fashion_mnist-kd-swin_t-resnet18-aaaaaaaaaa/metrics.json")
    assert done.returncode == 1
    assert "resnet18-aaaaaaaaaa: no table needs this run; `fbt plan --runs` lists the runs" in done.stdout


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> WorkflowCopy:
    return WorkflowCopy.make(tmp_path_factory.mktemp("paper") / "copy")


def test_the_papers_runs_are_listed_without_its_data(paper):
    jobs = paper.planned("--config", "scale=paper")
    expected = plan(load(overrides={"scale": "paper"}))
    assert jobs["train"] == len(
        expected.needed(r for key in expected.all_tables for r in expected.tables[key].runs)
    )
    assert jobs["build_table"] == len(expected.all_tables)


@pytest.mark.slow
def test_timms_weights_are_fetched_once_on_this_machine_before_the_teachers(paper):
    """One local job a tag; where there is no network its message says what to do, and nothing is trained."""
    tags = timm_tags(plan(load(overrides={"scale": "paper"})).runs.values())
    jobs = paper.planned("--config", "scale=paper")
    assert jobs["fetch_weights"] == len(tags) == 7
    tag = "swin_tiny_patch4_window7_224.ms_in1k"
    target = f"results/paper/weights/{tag}.txt"
    options = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(paper.folder / "empty")}
    done = paper.snakemake("--cores", "1", target, "--config", "scale=paper", **options)
    assert done.returncode == 1
    assert f"python -m fbt_core.weights fetch {tag}" in done.stdout
    assert "localrule fetch_weights" in done.stdout
    assert not (paper.folder / target).exists()


def test_without_its_data_the_paper_stops_before_the_first_training(paper):
    done = paper.snakemake("--cores", "1", "--config", "scale=paper", "--", "results/paper/tables/table5.md")
    assert done.returncode == 1
    assert "config/config.yaml: data_roots.cifar100: is not set" in done.stdout
    assert "data_roots.imagenet" not in done.stdout
    assert not (paper.folder / "results/paper/runs").exists()


def test_a_training_has_one_thread_at_smoke():
    flow = Flow({})
    assert (flow.threads, flow.training_resources["gpu"]) == (1, 0)
    assert flow.execution.threads == 1


# ---------------------------------------------------------------- frozen specs


def test_a_dry_run_writes_no_spec_and_a_training_has_its_own(built, tmp_path):
    copy = WorkflowCopy.make(tmp_path / "dry")
    copy.planned(TARGETS[1])
    assert not (copy.folder / "results").exists()
    for run in RUNS:
        assert parse_spec((built.folder / f"results/smoke/specs/{run}.json").read_text()) == PLAN.runs[run]
    # Beside them, for the names of a cluster's jobs, what people call each run.
    names = json.loads((built.folder / ".snakemake/submitit/names.json").read_text())
    assert (
        names[PLAN.tables["table5"].runs[0]].split("/")[0] in PLAN.tables and names.keys() == PLAN.runs.keys()
    )


def node_job(copy: WorkflowCopy, run: str) -> subprocess.CompletedProcess[str]:
    """What an executor starts on a node for a training: an inner Snakemake that plans anew."""
    files = [f"results/smoke/runs/{run}/{name}" for name in ("metrics.json", "weights.safetensors")]
    inner = ["--nolock", "--no-hooks", "--force", "--cores", "1", "--mode", "remote"]
    return copy.snakemake(*files, "--target-jobs", f"train:run={run}", "--allowed-rules", "train", *inner)


@pytest.mark.parametrize(
    ("file", "text"),
    [("config/tables/table5.yaml", "rows: ["), ("config/recipes.yaml", "{}"), ("config/methods.yaml", "x")],
)
def test_yaml_that_changes_while_a_job_waits_changes_nothing_of_it(copy, file, text):
    run = PLAN.tables["table5"].runs[0]
    (copy.folder / f"results/smoke/runs/{run}/metrics.json").unlink()
    (copy.folder / file).write_text(text)
    done = node_job(copy, run)
    assert done.returncode == 0, done.stdout
    metrics = json.loads((copy.folder / f"results/smoke/runs/{run}/metrics.json").read_text())
    assert parse_spec(json.dumps(metrics["spec"])) == PLAN.runs[run]


def test_a_job_whose_spec_is_missing_or_another_says_what_to_do(copy):
    run, other = PLAN.tables["table5"].runs[:2]
    path = copy.folder / f"results/smoke/specs/{run}.json"
    path.write_text((path.parent / f"{other}.json").read_text())
    assert f"specs/{run}.json: holds the spec of {other}; the file was changed" in node_job(copy, run).stdout
    path.unlink()
    done = node_job(copy, run)
    assert done.returncode == 1
    assert "start the workflow again, which writes it" in done.stdout


def test_a_failing_training_shows_its_error_and_no_spec(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "failing")
    run = PLAN.needed(PLAN.tables["table5"].runs)[0]
    done = copy.snakemake("--cores", "1", f"results/smoke/runs/{run}/metrics.json", FAILING_RUN=run)
    assert done.returncode == 1
    assert "learning_rate" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 600


def test_the_paper_never_trains_on_a_cpu_unaware():
    assert not execution_settings(Flow({"scale": "paper"}).config).allow_cpu
    assert Flow({"scale": "paper"}).training_resources["gpu"] == 1


def test_snakemake_lint_finds_only_that_rules_name_no_environment():
    """They call the interpreter that runs Snakemake, as docs/install.md says."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True
    )
    titles = re.findall(r"^ +\* (.+):$", done.stderr, re.MULTILINE)
    assert set(titles) == {"Specify a conda environment or container for each rule."}, done.stderr


def test_the_rules_are_formatted():
    files = ["Snakefile", *map(str, Path(ROOT, "workflow").rglob("*.smk"))]
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_rules_are_shell_commands_and_hold_no_python():
    text = "".join(path.read_text() for path in Path(ROOT, "workflow").rglob("*.smk"))
    assert not re.search(r"^ *(run|script):$|^def ", text, flags=re.M)
    assert len(Path(ROOT, "Snakefile").read_text().splitlines()) < 45


def test_profile_default_holds_only_what_a_laptop_and_a_cluster_share():
    import yaml

    content = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert not {"cores", "jobs", "executor", "config", "default-resources"} & set(content)
    assert "code" not in content["rerun-triggers"]


def test_counts_of_the_smoke_plan():
    kinds = Counter(PLAN.runs[run].method.name for run in RUNS)
    assert (kinds["kd"], kinds["fbt"]) == (4, 9)

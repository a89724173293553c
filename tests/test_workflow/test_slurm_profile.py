"""`snakemake --profile slurm`, word for word, from a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import Cluster, wait_for

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "slurm", "profiles", "config", "workflow", "fbt_core", "fbt_paper", "environment.yml")
TABLE = "results/smoke/tables/table5.md"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git has of the workflow, in a folder of its own."""
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            (tmp_path / part).symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(
                source, tmp_path / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif source.exists():
            shutil.copy(source, tmp_path / part)
    return tmp_path


def call(folder: Path, *arguments: str, conf: Path | None = None, timeout: float = 1800) -> str:
    """Run Snakemake as a user does, and return what it says."""
    answer = subprocess.run(
        command(*arguments), cwd=folder, env=environment(conf), text=True, timeout=timeout, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-6000:]
    return answer.stdout


def command(*arguments: str) -> list[str]:
    """snakemake of this environment."""
    return [sys.executable, "-m", "snakemake", *arguments]


def environment(conf: Path | None = None) -> dict[str, str]:
    """The environment of a login shell on the cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SNAKEMAKE_"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PATH": path, **({"SLURM_CONF": str(conf)} if conf else {})}


def test_profile_is_for_the_paper_and_every_training_asks_for_gpus(clone: Path) -> None:
    """Scale paper, executor submitit, and GPUs for each training, without a cluster at hand."""
    text = call(clone, "--profile", "slurm", "-n")
    assert "results/paper/" in text
    assert "results/smoke/" not in text
    blocks = [block for block in text.split("\n[") if "\nrule train:" in block]
    assert len(blocks) > 100
    assert all("gpu=1," in block or "gpu=8," in block or "gpu=1\n" in block for block in blocks)
    imagenet = [block for block in blocks if "wildcards: run=imagenet-" in block]
    assert imagenet
    assert all("gpu=8" in block for block in imagenet)


def test_smoke_through_the_profile_asks_for_gpus_too(clone: Path) -> None:
    """`--config scale=smoke` keeps everything else of the profile."""
    text = call(clone, TABLE, "--profile", "slurm", "--config", "scale=smoke", "-n")
    blocks = [block for block in text.split("\n[") if "\nrule train:" in block]
    assert blocks
    assert all("gpu=1" in block and "mem_mb=2000" in block for block in blocks)


def planned_resources(clone: Path, *arguments: str) -> dict[str, str]:
    """The resources of every training in a dry run, by run."""
    text = call(clone, "--profile", "slurm", "-n", *arguments)
    blocks = [block for block in text.split("\n[") if "\nrule train:" in block]
    return {
        re.search(r"wildcards: run=(\S+)", block)[1]: re.search(r"resources: (.+)", block)[1]
        for block in blocks
    }


def test_a_new_architecture_gets_what_its_family_gets(clone: Path) -> None:
    """Its entry in architectures.yaml says the family; no name of a network is ever interpreted."""
    with (clone / "config/architectures.yaml").open("a") as file:
        file.write("\npvt_v2_b0:\n  title: PVT\n  family: msa\n  create: pvt_v2_b0\n  options: {}\n")
    table = clone / "config/tables/table5.yaml"
    column = "columns:\n  - {key: new, label: New, teacher: swin_t, student: pvt_v2_b0}\n"
    table.write_text(table.read_text().replace("columns:\n", column))
    resources = clone / "profiles/slurm/resources.yaml"
    counts = iter((1, 2, 3, 8, 8, 8))
    resources.write_text(re.sub(r"gpus: \d", lambda _: f"gpus: {next(counts, 1)}", resources.read_text()))
    planned = planned_resources(clone, "results/paper/tables/table5.md")
    assert len([run for run in planned if "pvt_v2_b0" in run]) == 2
    for run, text in planned.items():
        network = run.split("-")[-2]
        expected = 2 if network in ("pvt_v2_b0", "swin_t", "swin_p", "vit_s") else 1
        assert f"gpu={expected}," in text, (run, text)


def test_resources_on_the_command_line_win_and_change_nothing_else(clone: Path) -> None:
    """--set-resources wins over the table, and --config does not lose it."""
    planned = planned_resources(
        clone, "results/paper/tables/table5.md", "--set-resources", "train:gpu=3",
        "--config", "scale=paper", "score=last",
    )  # fmt: skip
    assert planned
    assert all("gpu=3," in text and "mem_mb=32000" in text and "cpus=8" in text for text in planned.values())


def test_a_copied_profile_has_its_own_table(clone: Path) -> None:
    """Found beside the profile in use, wherever that lies."""
    shutil.copytree(clone / "profiles/slurm", clone / "elsewhere/mine")
    table = clone / "elsewhere/mine/resources.yaml"
    table.write_text(table.read_text().replace("hours: 24", "hours: 2.5"))
    text = call(clone, "--profile", "elsewhere/mine", "-n", "results/paper/tables/table5.md")
    assert "runtime=150" in text and "runtime=1440" not in text.partition("localrule")[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus: 1,", "gpu: 1,", "resources.yaml: training_resources.datasets.cifar100.cnn.gpu: unknown key"),
        ("cifar100:", "cifar10:", "training_resources.datasets.cifar10: unknown dataset 'cifar10'; valid: "),
        ("hours: 24", "hours: 1d", "training_resources.datasets.cifar100.cnn.hours: "),
        ("      msa: {gpus: 1, hours: 24, memory: 32, cpus: 8}\n", "", "cifar100.msa: is missing"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_is_one_message(clone: Path, old: str, new: str, message: str) -> None:
    """The table is checked like every file of config/."""
    from fbt_paper.config.problems import ConfigError
    from fbt_paper.plan.resources import read_resources
    from fbt_paper.plan.targets import Flow

    path = clone / "profiles/slurm/resources.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        Flow({"scale": "paper", **read_resources(path.parent)})
    assert message in str(caught.value)


def test_rules_of_the_login_node_run_two_at_a_time(clone: Path) -> None:
    """Tables and figures are local rules: 64 processors of a login node must not start 64 plots at once."""
    from fbt_paper.status.cluster import read_profile

    profile, _ = read_profile(clone / "profiles/slurm")
    assert profile["local-cores"] == "2"
    assert "cores" not in profile
    default, _ = read_profile(clone / "profiles/default")
    assert not {"cores", "local-cores", "jobs"} & set(default), "profiles/default wins over profiles/slurm"


def read_metrics(clone: Path) -> dict[str, dict[str, Any]]:
    """The metrics of every run that is done."""
    files = clone.glob("results/smoke/runs/*/metrics.json")
    return {path.parent.name: json.loads(path.read_text()) for path in files}


def journal(clone: Path) -> dict[str, dict[str, Any]]:
    """The executor's journal by run."""
    entries = [
        json.loads(path.read_text()) for path in (clone / ".snakemake/submitit/journal").glob("*.json")
    ]
    return {entry["wildcards"]["run"]: entry for entry in entries if entry["rule"] == "train"}


@pytest.mark.slurm
@pytest.mark.timeout(2400)
def test_table_5_through_slurm_with_a_dead_head_and_a_requeue(
    clone: Path, start_cluster: Callable[..., Cluster]
) -> None:
    """Table 5 whole, of fewer images; on the way the head dies and an administrator requeues a training."""
    # The requeued training waits until a teacher has ended: with all images that may take very long.
    data = clone / "config/datasets.yaml"
    data.write_text(data.read_text().replace("  train_images: 10000\n", "  train_images: 2000\n", 1))
    cluster = start_cluster()
    arguments = (TABLE, "--profile", "slurm", "--config", "scale=smoke")
    with (clone / "head.log").open("w") as log:
        head = subprocess.Popen(
            command(*arguments), cwd=clone, env=environment(cluster.conf), stdout=log, stderr=log
        )
    try:
        wait_for(lambda: runs_at_work(clone), 300, f"a first epoch\n{(clone / 'head.log').read_text()}")
    finally:
        head.kill()
        head.wait(30)
    run = wait_for(lambda: requeue_one(cluster, clone), 300, "a training that was requeued before it ended")
    call(clone, "--unlock")
    cluster.let_start(journal(clone)[run]["job_id"], timeout=900)  # both GPUs may train teachers
    call(clone, *arguments, conf=cluster.conf)
    check_results(clone, run)
    weights = clone / "results/smoke/runs" / run / "weights.safetensors"
    disturbed = weights.read_bytes()
    shutil.rmtree(weights.parent)
    call(clone, str(weights.relative_to(clone)), "--cores", "1")
    assert weights.read_bytes() == disturbed, (
        "an undisturbed training on this machine ends with the same bytes"
    )


def runs_at_work(clone: Path) -> list[str]:
    """Runs that have trained an epoch and are not done, those with the fewest epochs first."""
    epochs = {
        path.parent.name: path.read_text().count("\n")
        for path in clone.glob("results/smoke/runs/*/history.jsonl")
        if not (path.parent / "metrics.json").exists()
    }
    return sorted((run for run in epochs if epochs[run]), key=lambda run: epochs[run])


def requeue_one(cluster: Cluster, clone: Path) -> str | None:
    """Requeue a training; if it came to its end in that moment, another one must do."""
    for run in runs_at_work(clone):
        job_id = journal(clone)[run]["job_id"]
        if cluster.states().get(job_id) != "RUNNING":
            continue
        assert cluster.job(job_id)["TresPerNode"] == "gres:gpu:1"
        if cluster.ask("scontrol", "requeue", job_id).returncode == 0:
            wait_for(lambda: cluster.states().get(job_id) == "PENDING", 60, f"job {job_id} pending")  # noqa: B023
            if not (clone / "results/smoke/runs" / run / "metrics.json").exists():
                return run
    return None


def check_results(clone: Path, requeued: str) -> None:
    """The table is there; every training had its GPU, one job, and no epoch twice."""
    assert "Swin Block" in (clone / TABLE).read_text()
    jobs, metrics = journal(clone), read_metrics(clone)
    assert set(jobs) == set(metrics)
    for run, content in metrics.items():
        execution = content["execution"]
        assert execution["cuda_visible_devices"] in ("0", "1")
        assert execution["job_id"] == jobs[run]["job_id"]
        lines = (clone / "results/smoke/runs" / run / "history.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == sorted(set(epochs))
    assert metrics[requeued]["execution"]["restarts"] >= 1
    assert jobs[requeued]["restarts"] >= 1


def test_check_cluster_names_what_is_missing_without_slurm(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Slurm, data and weights: one line each with its fix."""
    from fbt_paper.status import cluster

    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", str(clone / "nothing"))
    monkeypatch.setenv("HF_HUB_CACHE", str(clone / "nothing"))
    assert cluster.main([]) == 1
    text = capsys.readouterr().out
    assert "MISSING the command sbatch\n        hint: run this on a login node" in text
    assert "MISSING data of cifar100" in text
    assert "ok      the profile profiles/slurm/config.yaml" in text


def test_check_cluster_names_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line instead of a traceback, and Slurm is not even asked."""
    from types import SimpleNamespace

    from fbt_paper.status import cluster as checks

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").touch()
    flow: Any = SimpleNamespace()
    (check,) = checks.check_slurm({}, flow)
    assert not check.ok
    assert "jobs cannot be written: Not a directory" in check.what
    assert "shared file system" in check.hint


def test_check_cluster_tells_silence_from_refusal() -> None:
    """A Slurm that does not answer is no reason to edit the profile."""
    from types import SimpleNamespace

    from snakemake_executor_plugin_submitit.slurm import SlurmBusyError

    from fbt_paper.status import cluster as checks

    def silent(request: Any, name: str) -> None:
        raise SlurmBusyError("sbatch timed out")

    backend = SimpleNamespace(problems=lambda request: [], try_submission=silent)
    (check,) = checks.check_request(backend, SimpleNamespace())
    assert "Slurm gives no answer" in check.what
    assert check.hint == "try again later"


def test_check_cluster_asks_for_the_largest_packs_too(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More memory than one training, more time to save, and what the profile sets for the rule of packs."""
    from fbt_paper.plan.resources import read_resources
    from fbt_paper.plan.targets import Flow
    from fbt_paper.status.cluster import read_profile, training_requests

    monkeypatch.chdir(clone)
    profile, _ = read_profile(Path("profiles/slurm"))
    flow = Flow({"scale": "paper", "execution": {"pack": 4}, **read_resources(Path("profiles/slurm"))})
    requests = training_requests({**profile, "set-resources": ["pack:constraint=a100"]}, flow)
    alone, pack = (requests[f"{what}trainings of cifar100, cnn"] for what in ("", "packs of up to 4 "))
    assert (alone.mem_mb, pack.mem_mb) == (32000, 41600)
    assert (pack.gpu, pack.cpus, pack.runtime) == (alone.gpu, alone.cpus, alone.runtime)
    assert (alone.signal_seconds, pack.signal_seconds) == (0, 210)
    assert (alone.constraint, pack.constraint) == (None, "a100")
    assert not [kind for kind in training_requests(profile, Flow({"scale": "smoke"})) if "packs" in kind]


def test_check_cluster_has_one_line_for_each_limit() -> None:
    from fbt_paper.status.cluster import check_requests

    answers = {1: ["no GPU"], 2: ["no GPU", "too long"], 3: []}
    backend = SimpleNamespace(
        problems=lambda request: answers[request.gpu], try_submission=lambda request, name: None
    )
    kinds = [SimpleNamespace(gpu=gpu, cpus=8, mem_mb=100, runtime=60) for gpu in (1, 2, 3)]
    checks = check_requests(backend, {"a": kinds[0], "b": kinds[1], "c": kinds[2], "d": kinds[2]})
    lines = [(check.ok, check.what) for check in checks]
    assert lines[:2] == [(False, "a; b: no GPU"), (False, "b: too long")]
    assert lines[2:] == [(True, "c; d: 3 GPUs, 8 CPUs, 100 MB, 60 minutes: sbatch would take it")]


def test_check_cluster_knows_threads_that_the_profile_sets(clone: Path) -> None:
    from fbt_paper.status.cluster import profile_resources, read_profile, threads_of_rule

    path = clone / "profiles/slurm/config.yaml"
    path.write_text(path.read_text() + "\nset-threads: {train: 16}\n")
    profile, _ = read_profile(path.parent)
    assert (threads_of_rule(profile, "train", 4), threads_of_rule(profile, "pack", 4)) == (16, 4)
    profile["set-resources"] = ["train:cpus=threads+1"]
    wildcards, threads = SimpleNamespace(run="x"), threads_of_rule(profile, "train", 4)
    assert profile_resources(profile, "train", wildcards, {"cpus": 8}, threads)["cpus"] == 17


@pytest.mark.slurm
def test_check_cluster_asks_slurm(
    clone: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the small test cluster the paper's trainings do not fit, those of scale smoke do."""
    from fbt_paper.status import cluster as checks

    monkeypatch.chdir(clone)
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    assert checks.main([]) == 1
    text = capsys.readouterr().out
    limit = "cpus: 8 asked, but no node of partition 'main' has more than 2"
    assert re.search(rf"trainings of cifar100, cnn(; [^:]*)?: {limit}", text)
    assert text.count(limit) == 1, "one line for each limit, whatever breaks it"
    assert checks.main(["--scale", "smoke"]) == 0
    text = capsys.readouterr().out
    taken = "1 GPUs, 1 CPUs, 2000 MB, 60 minutes: sbatch would take it"
    assert re.search(rf"trainings of fashion_mnist, cnn(; [^:]*)?: {taken}", text)
    assert "nodes see" in text

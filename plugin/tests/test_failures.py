"""Reports to the user on a real Slurm: failures, jobs that cannot start, and input that can never work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import Cluster, wait_for
from workflows import Controller, Workflow

pytestmark = pytest.mark.slurm

SIMPLE = """\
rule all:
    input: "out.txt"

rule work:
    output: "out.txt"
    resources: {resources}
    shell: "{command}"
"""


def refused(work: Workflow, resources: str, *arguments: str, command: str = "touch {output}") -> Controller:
    """Run a workflow that must be refused before anything is submitted."""
    work.write(SIMPLE.format(resources=resources, command=command))
    controller = work.call(*arguments, timeout=90)
    assert controller.process.returncode != 0
    assert "Traceback" not in controller.text
    assert "submitted" not in controller.text
    return controller


def test_cancelled_by_a_user(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """(e) scancel of one task of an array: which run, what happened, where the files are."""
    work = make_workflow(cluster, epochs=12)
    work.write_training(["one", "two"], step_s=0.4)
    controller = work.start("--keep-going")
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 1)
    cluster.run("scancel", job_id)
    assert controller.wait(180) == 1
    assert "train run=one: cancelled (CANCELLED)" in controller.text
    assert f"job {job_id} on cluster slurm, node n1" in controller.text
    entry = work.entries()["one"]
    assert entry["state"] == "CANCELLED"
    assert entry["error_log"] in controller.text
    assert entry["script"] in controller.text
    assert Path(entry["script"]).exists()
    assert Path(entry["submission"]).exists()
    work.assert_undisturbed("two")
    work.call().finish()
    work.assert_undisturbed("one")


def test_out_of_memory(start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]) -> None:
    """(f) Slurm says FAILED and 'exceeded memory limit'; the user reads the limit and the job's peak."""
    cluster = start_cluster(kill_over_memory=True)
    work = make_workflow(cluster, epochs=20)
    work.write_training(["one"], resources="runtime=10, mem_mb=400", step_s=0.5, eat_mb=15)
    controller = work.call()
    assert controller.process.returncode == 1
    assert "train run=one: out of memory (OUT_OF_MEMORY): its limit was mem_mb=400" in controller.text
    assert "the largest use seen by the job itself was" in controller.text
    entry = work.entries()["one"]
    assert entry["state"] == "OUT_OF_MEMORY"
    assert entry["peak_memory_mb"] > 200


def test_failing_rule(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """A rule that fails, and fails again on its retry: exit code and the program's own last lines."""
    work = make_workflow(cluster)
    work.write(SIMPLE.format(resources="runtime=5", command="echo the disk is on fire >&2; exit 3"))
    controller = work.call("--retries", "1")
    assert controller.process.returncode == 1
    assert controller.text.count("its command failed with exit code 3 (FAILED)") == 2
    assert "| the disk is on fire" in controller.text
    assert "Trying to restart job" in controller.text


def test_tells_why_a_job_cannot_start(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """A job that is held is reported once, with what to do about it, and goes on when released."""
    cluster.run("scontrol", "update", "PartitionName=high", "State=DOWN")
    work = make_workflow(cluster)
    work.write(SIMPLE.format(resources="runtime=5, slurm_partition='high'", command="touch {output}"))
    controller = work.start()
    controller.says("cannot start: work .*: PartitionDown")
    assert work.entries()["work"]["reason"] == "PartitionDown"
    cluster.run("scontrol", "update", "PartitionName=high", "State=UP")
    controller.finish()
    assert controller.text.count("cannot start") == 1


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("slurm_partition='mian'", "partition 'mian' does not exist (did you mean 'main'?); valid are"),
        ("gpu=3", "gpu: 3 per node asked, but no node of partition 'main' has more than 2"),
        ("runtime=-5", "runtime=-5 must be 1 or more"),
        ("slurm_partition='short', runtime=11", "runtime: 11 minutes asked, but partition 'short' allows 10"),
        ("slurm_partitoin='main'", "resource 'slurm_partitoin' is unknown (did you mean 'slurm_partition'?)"),
    ],
)
def test_refuses_resources(
    cluster: Cluster, make_workflow: Callable[..., Workflow], resources: str, message: str
) -> None:
    """One line with the rule, what is wrong and what is valid, before the first submission."""
    controller = refused(make_workflow(cluster), resources)
    assert f"rule work: {message}" in controller.text
    assert cluster.states() == {}


def test_refuses_a_folder_that_nodes_do_not_see(
    start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow], tmp_path: Path
) -> None:
    """A node with another file system in the working folder's path."""
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "hide"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make mount namespaces: no way to hide a folder from a node")
    cluster = start_cluster(node_prefix=hide)
    controller = refused(make_workflow(cluster, settings={"shared_folder_check": "yes"}), "runtime=5")
    assert "is not shared with node" in controller.text


def test_refuses_unknown_cluster_and_settings(
    cluster: Cluster, make_workflow: Callable[..., Workflow]
) -> None:
    """All wrong settings at once."""
    settings = {"cluster": "slrum", "on_interrupt": "leav", "signal_seconds": -1}
    controller = refused(make_workflow(cluster, settings=settings), "runtime=5")
    assert (
        "--submitit-cluster 'slrum' is unknown (did you mean 'slurm'?); valid are slurm, local, debug"
        in controller.text
    )
    assert "--submitit-on-interrupt 'leav' is unknown (did you mean 'leave'?)" in controller.text
    assert "--submitit-signal-seconds must be 1 or more, not -1" in controller.text


def test_dry_run_asks_slurm(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """`-n` with --submitit-test-only submits nothing and reports which rules Slurm would take."""
    work = make_workflow(cluster)
    work.write_training(["one", "two"])
    text = work.call("-n", "--submitit-test-only").finish()
    assert "sbatch --test-only, rule train: would be taken" in text
    work.write_training(["one"], resources="runtime=5, slurm_account='nobody', constraint='fast'")
    controller = work.call("-n", "--submitit-test-only")
    assert controller.process.returncode != 0
    assert "rule train: sbatch: " in controller.text
    assert cluster.states() == {}


def test_other_ways_of_running(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """Dry run, --touch, localrule, benchmark and report behave as with other executors."""
    work = make_workflow(cluster)
    rule = 'rule work:\n    output: "out.txt"\n    benchmark: "bench.tsv"\n    shell: "touch {output}"\n'
    local = (
        'rule last:\n    localrule: True\n    input: "out.txt"\n    output: report("last.txt")\n'
        '    shell: "cp {input} {output}"\n'
    )
    work.write(f'rule all:\n    input: "last.txt"\n{rule}{local}')
    assert work.call("-n").process.returncode == 0
    assert cluster.states() == {}
    work.call().finish()
    assert len(cluster.states()) == 1
    assert (work.folder / "bench.tsv").read_text().startswith("s\t")
    assert work.call("--touch").process.returncode == 0
    assert work.call("--report", "report.html").process.returncode == 0
    assert (work.folder / "report.html").exists()


def test_accounting(start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]) -> None:
    """With slurmdbd: who cancelled a job is reported (forgotten by squeue: test_submission.py)."""
    cluster = start_cluster(accounting=True)
    work = make_workflow(cluster, epochs=12)
    work.write_training(["one", "two"], step_s=0.4)
    controller = work.start("--keep-going")
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 1)
    assert "gres/gpu=1" in cluster.job(job_id)["TRES"]
    cluster.run("scancel", job_id)
    assert controller.wait(180) == 1
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert f"train run=one: cancelled by {user} (CANCELLED)" in controller.text
    work.assert_undisturbed("two")


def test_gpus_are_requested_and_seen(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """The job's TRES count its GPUs and the program sees exactly those."""
    work = make_workflow(cluster)
    work.write_training(["one"], resources="runtime=5, gpu=2, mem_mb=300")
    work.call().finish()
    entry = work.entries()["one"]
    assert cluster.job(entry["job_id"])["TresPerNode"] == "gres:gpu:2"
    metrics = work.metrics("one")
    assert metrics["cuda_visible_devices"] == "0,1"
    assert metrics["execution"]["gpus"] == "2"
    assert metrics["execution"]["job_id"] == entry["job_id"]
    assert entry["gpu_hours"] > 0


def test_job_of_two_nodes(
    start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]
) -> None:
    """The command runs once; its launcher starts one process on every node."""
    cluster = start_cluster(nodes=2)
    work = make_workflow(cluster)
    command = "$SNAKEMAKE_SUBMITIT_LAUNCHER sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES' > {output}"
    work.write(SIMPLE.format(resources="runtime=5, nodes=2, gpu=2", command=command))
    work.call().finish()
    assert sorted((work.folder / "out.txt").read_text().splitlines()) == ["n1 0", "n2 0"]


def test_missing_sbatch(make_workflow: Callable[..., Workflow]) -> None:
    """A machine without Slurm: one line with the way out."""
    work = make_workflow()
    bare = work.folder / "bin"
    bare.mkdir()
    for name in ("python3", "bash", "sh", "env", "uname"):
        (bare / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    work.write(SIMPLE.format(resources="runtime=5", command="touch {output}"))
    environment = {**os.environ, "PATH": str(bare)}
    answer = subprocess.run(work.command(), cwd=work.folder, env=environment, capture_output=True, text=True,
                            timeout=90, check=False)  # fmt: skip
    assert answer.returncode != 0
    assert "the command sbatch is not on PATH" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_journal_is_whole_json(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """Readers never meet half a file, also while jobs start and end; arrays are chunked and throttled."""
    work = make_workflow(cluster, settings={"array_size": 3, "array_throttle": 1})
    work.write_training([f"r{number}" for number in range(4)], step_s=0.05, resources="runtime=5")
    controller = work.start()
    folder = work.folder / ".snakemake" / "submitit" / "journal"

    def read_all() -> bool:
        for path in folder.glob("*.json"):
            json.loads(path.read_text())
        return controller.process.poll() is not None

    wait_for(read_all, 180, "the workflow to end", interval=0.05)
    controller.finish()
    assert sorted("_" in job_id for job_id in cluster.states()) == [False, True, True, True]
    assert "[0-2]" in controller.text
    names = {cluster.job(job_id)["JobName"] for job_id in cluster.states()}
    assert names == {f"train-r{number}" for number in range(4)}, "tasks of an array as well"
    assert {entry["state"] for entry in work.entries().values()} == {"COMPLETED"}

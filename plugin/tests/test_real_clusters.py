"""Unusual clusters, shells and users on a real Slurm: jobs end well and nothing is submitted twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import Cluster
from workflows import Workflow

pytestmark = pytest.mark.slurm

SIMPLE = """\
rule work:
    output: "out.txt"
    resources: {resources}
    shell: "{command}"
"""


def test_variables_of_the_shell_change_nothing(
    cluster: Cluster, make_workflow: Callable[..., Workflow]
) -> None:
    """Filters of squeue, options of sbatch, a job around Snakemake, and a site that exports nothing."""
    shell = {
        "SQUEUE_PARTITION": "high", "SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "PENDING", "SINFO_FORMAT": "%n",
        "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-3", "SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1",
        "SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "short", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "9",
    }  # fmt: skip
    work = make_workflow(cluster)
    work.variables = shell
    work.write_training(["one", "two"], resources="runtime=10, mem_mb=200", step_s=0.2)
    controller = work.call()
    controller.finish()
    entries = work.entries()
    assert len(cluster.states()) == 2
    for run in ("one", "two"):
        work.assert_undisturbed(run)
        assert entries[run]["restarts"] == 0
        job = cluster.job(entries[run]["job_id"])
        assert (job["TimeLimit"], job["Requeue"], job["Partition"]) == ("00:10:00", "1", "short")
    assert "SBATCH_PARTITION=short" in controller.text
    assert "SQUEUE_PARTITION, SQUEUE_STATES: not passed on" in controller.text


def test_setup_line_that_fails_fails_the_job(
    cluster: Cluster, make_workflow: Callable[..., Workflow]
) -> None:
    work = make_workflow(cluster, settings={"setup": "module_of_yesterday load cuda"})
    work.write(SIMPLE.format(resources="runtime=5", command="touch {output}"))
    controller = work.call()
    assert controller.process.returncode == 1
    assert "--submitit-setup failed with exit code 127" in controller.text
    assert not (work.folder / "out.txt").exists()


@pytest.mark.parametrize("option", ["auto", "gres", "gpus-per-task"])
def test_gpus_by_other_options(cluster: Cluster, make_workflow: Callable[..., Workflow], option: str) -> None:
    work = make_workflow(cluster, settings={"gpu_option": option})
    work.write(SIMPLE.format(resources="runtime=5, gpu=1", command="echo $CUDA_VISIBLE_DEVICES > {output}"))
    work.call().finish()
    assert (work.folder / "out.txt").read_text() == "0\n"
    script = Path(work.entries()["work"]["submission"]).read_text()
    expected = {"auto": "--gpus-per-node=1", "gres": "--gres=gpu:1", "gpus-per-task": "--gpus-per-task=1"}
    assert expected[option] in script


def test_cluster_that_knows_gres_only(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """An sbatch that refuses --gpus-per-node, as Slurm did before 19.05: the way that works is found."""
    work = make_workflow(cluster)
    old = work.folder / "old" / "sbatch"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\nfor script; do :; done\n"
        'if grep -q -- "--gpus-per-" "$script"; then echo "sbatch: unrecognized option" >&2; exit 1; fi\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    old.chmod(0o755)
    work.variables = {"PATH": f"{old.parent}:{work.environment['PATH']}"}
    work.write(SIMPLE.format(resources="runtime=5, gpu=2", command="echo $CUDA_VISIBLE_DEVICES > {output}"))
    work.call().finish()
    assert (work.folder / "out.txt").read_text() == "0,1\n"
    assert "--gres=gpu:2" in Path(work.entries()["work"]["submission"]).read_text()


def test_a_slurm_that_refuses_an_option_for_gpus(
    start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]
) -> None:
    """select/cons_res (as linear) refuses --gpus-per-task; none of Slurm 22.05 refuses --gpus-per-node."""
    cluster, rule = start_cluster(select="cons_res"), "echo $CUDA_VISIBLE_DEVICES > {output}"
    refused = make_workflow(cluster, settings={"gpu_option": "gpus-per-task"})
    refused.write(SIMPLE.format(resources="runtime=5, gpu=1", command=rule))
    controller = refused.call()
    assert controller.process.returncode == 1
    assert "unsupported by configured SelectType plugin" in controller.text
    assert not cluster.states(), "nothing was submitted"
    for option in ("auto", "gres"):
        work = make_workflow(cluster, settings={"gpu_option": option})
        work.write(SIMPLE.format(resources="runtime=5, gpu=1", command=rule))
        work.call().finish()
        assert (work.folder / "out.txt").read_text() == "0\n"


def test_two_clusters_and_one_folder(
    start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]
) -> None:
    """On the second cluster the first one's job is neither lost nor taken for one of the same number."""
    east, west = start_cluster(name="east"), start_cluster(name="west")
    work = make_workflow(east, epochs=3)
    work.write_training(["one"], resources="runtime=10", step_s=0.01, gate="gate")
    controller = work.start()
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 1)
    controller.kill()
    work.unlock()
    work.cluster = west
    assert west.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60").strip() == job_id
    controller = work.call()
    assert controller.process.returncode == 1
    assert "may still run on Slurm's cluster east" in controller.text
    assert list(west.states()) == [job_id], "nothing was submitted there"
    work.cluster = east
    (work.folder / "gate").touch()
    work.call().finish()
    assert work.job_id("one") == job_id
    work.assert_undisturbed("one")


def test_two_controllers_submit_a_job_once(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    work = make_workflow(cluster, epochs=3)
    work.write_training(["one", "two", "three"], resources="runtime=10", step_s=0.01, gate="gate")
    controllers = [work.start("--nolock") for _ in range(2)]
    jobs = {run: work.job_id(run) for run in ("one", "two", "three")}
    for controller in controllers:
        controller.says("submitted train|re-attached to job|submitted by another Snakemake")
    (work.folder / "gate").touch()
    for controller in controllers:
        controller.finish()
    assert len(cluster.states()) == 3
    for run, job_id in jobs.items():
        assert work.job_id(run) == job_id
        work.assert_undisturbed(run)

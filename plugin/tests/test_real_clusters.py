"""Unusual clusters, shells and users on a real Slurm: jobs end well and nothing is submitted twice."""

from __future__ import annotations

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

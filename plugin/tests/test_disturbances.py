"""Trainings on a real Slurm that are cut, preempted, requeued, or lose their node or their controller.

In every case the final weights are those of an undisturbed training and no epoch is trained twice.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable

import pytest

from cluster import Cluster, wait_for
from workflows import TRAINER, Controller, Workflow

pytestmark = pytest.mark.slurm

TWO_NODES = """\
rule train:
    output: "runs/n1/metrics.json", "runs/n2/metrics.json"
    resources: runtime=10, nodes=2
    shell: "{command}"
"""
SLOW_UNTIL_DISTURBED = {"fast_after": 1}
"""The stand-in takes its time until it has been restarted: no test depends on hitting a moment."""


def requeued(cluster: Cluster, job_id: str) -> None:
    """Wait until Slurm has taken a job back into the queue, then let it start."""
    cluster.let_start(job_id, timeout=90)


def test_time_limit_met_three_times(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """(a) Both tasks of an array are cut by their time limit three times and continue each time."""
    runs = ("one", "two")
    work = make_workflow(cluster, epochs=20, steps=20, settings={"signal_seconds": 20})
    work.write_training([*runs], resources="runtime=1, gpu=1", step_s=0.6, fast_after=3)
    controller = work.start()
    jobs = [work.job_id(run) for run in runs]
    assert all("_" in job_id for job_id in jobs)
    for restart in (1, 2, 3):
        for job_id in jobs:
            requeued(cluster, job_id)
            wait_for(lambda: int(cluster.job(job_id)["Restarts"]) == restart, 60, f"restart {restart}")  # noqa: B023
    finish_although_cut_again(cluster, controller, jobs)
    for run in runs:
        work.assert_undisturbed(run)
        entry = work.entries()[run]
        assert (entry["state"], entry["restarts"]) == ("COMPLETED", entry["timeouts"])
        assert entry["restarts"] >= 3
        assert work.metrics(run)["execution"]["restarts"] == str(entry["restarts"])
        assert float(work.metrics(run)["execution"]["queue_wait_s"]) > 3
    assert "requeued (time limit)" in controller.text


def finish_although_cut_again(cluster: Cluster, controller: Controller, jobs: list[str]) -> None:
    """Slurm may give its signal as much as a minute early: even a last start of seconds may meet it."""

    def ended() -> bool:
        for job_id in jobs:
            if cluster.states().get(job_id) == "PENDING":
                cluster.let_start(job_id)
        return controller.process.poll() is not None

    wait_for(ended, 180, "the workflow to end", interval=1.0)
    controller.finish()


def test_time_limit_met_too_often(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """More time limits than allowed end the job; the same command goes on from its last state."""
    work = make_workflow(cluster, epochs=40, steps=20, settings={"signal_seconds": 20, "max_timeouts": 0})
    work.write_training(["one"], resources="runtime=1", step_s=0.3)
    controller = work.call(timeout=150)
    assert controller.process.returncode == 1
    assert "met its time limit of 1 minutes 1 times (TIMEOUT after 0 requeues)" in controller.text
    assert work.entries()["one"]["state"] == "TIMEOUT"


@pytest.mark.parametrize("partition", ["warned", "low"])
def test_preempted(cluster: Cluster, make_workflow: Callable[..., Workflow], partition: str) -> None:
    """(b) A job with higher priority takes the node from an array, with the user signal and a grace time, and
    without.
    """
    runs = ("one", "two")
    work = make_workflow(cluster, epochs=20)
    resources = f"runtime=30, gpu=1, slurm_partition='{partition}'"
    work.write_training([*runs], resources=resources, step_s=0.5, **SLOW_UNTIL_DISTURBED)
    controller = work.start()
    for run in runs:
        work.wait_for_epochs(run, 1)
    cluster.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    for run in runs:
        requeued(cluster, work.job_id(run))
    controller.finish()
    for run in runs:
        work.assert_undisturbed(run)
        entry = work.entries()[run]
        assert (entry["state"], entry["restarts"], entry["timeouts"]) == ("COMPLETED", 1, 0)


def test_requeued_by_an_administrator(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """(c) `scontrol requeue` of one task of an array; the other task is not touched."""
    work = make_workflow(cluster, epochs=12)
    work.write_training(["one", "two"], step_s=0.4, **SLOW_UNTIL_DISTURBED)
    controller = work.start()
    job_id = work.job_id("one")
    assert "_" in job_id
    work.wait_for_epochs("one", 1)
    cluster.run("scontrol", "requeue", job_id)
    requeued(cluster, job_id)
    controller.finish()
    for run in ("one", "two"):
        work.assert_undisturbed(run)
    assert work.entries()["one"]["restarts"] == 1
    assert work.entries()["two"]["restarts"] == 0


def test_node_fails(start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]) -> None:
    """(d) The node of an array task dies; Slurm starts it again and it continues from its checkpoint."""
    cluster = start_cluster(nodes=3, node_timeout=30)
    work = make_workflow(cluster, epochs=30)
    work.write_training(["one", "two"], step_s=0.4, **SLOW_UNTIL_DISTURBED)
    controller = work.start()
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 2)
    node = cluster.run("squeue", "-h", "-r", "-j", job_id, "-o", "%N").strip()
    sharing = [
        run
        for run in ("one", "two")
        if cluster.run("squeue", "-h", "-r", "-j", work.job_id(run), "-o", "%N").strip() == node
    ]
    cluster.kill_node(node)
    for run in sharing:
        requeued(cluster, work.job_id(run))
    controller.finish(240)
    for run in ("one", "two"):
        work.assert_undisturbed(run)
    assert work.entries()["one"]["restarts"] == 1


def test_two_nodes_are_told_to_save(
    start_cluster: Callable[..., Cluster], make_workflow: Callable[..., Workflow]
) -> None:
    """The signal reaches the programs on both nodes, and does not end what has started them (as torchrun)."""
    cluster = start_cluster(nodes=2)
    work = make_workflow(cluster, epochs=20)
    ending = "code=$?; echo $code >> ended.$SLURMD_NODENAME; exit $code"
    trainer = f"{sys.executable} {TRAINER} runs/$SLURMD_NODENAME --epochs 20 --step-s 0.5 --fast-after 1"
    work.write(TWO_NODES.format(command=f"$SNAKEMAKE_SUBMITIT_LAUNCHER sh -c '{trainer}; {ending}'"))
    controller = work.start()
    job_id = work.job_id("train")
    for node in ("n1", "n2"):
        work.wait_for_epochs(node, 1)
    cluster.run("scancel", "--signal=USR2", job_id)
    requeued(cluster, job_id)
    controller.finish()
    for node in ("n1", "n2"):
        work.assert_undisturbed(node)
        assert (work.folder / f"ended.{node}").read_text().split() == ["75", "0"]
    entry = work.entries()["train"]
    assert (entry["restarts"], entry["timeouts"], entry["state"]) == (1, 0, "COMPLETED")


def test_job_cancelled_without_a_controller_is_submitted_again(
    cluster: Cluster, make_workflow: Callable[..., Workflow]
) -> None:
    """The controller dies, a user cancels a job, the same command comes at once: the job runs anew."""
    work = make_workflow(cluster, epochs=3)
    work.write_training(["one", "two"], step_s=0.01, gate="gate")
    controller = work.start()
    jobs = {run: work.job_id(run) for run in ("one", "two")}
    for run in jobs:
        work.wait_for_epochs(run, 1)
    controller.kill()
    cluster.run("scancel", jobs["one"])
    wait_for(lambda: cluster.states()[jobs["one"]] == "CANCELLED", 60, "the job is cancelled")
    work.unlock()
    (work.folder / "gate").touch()
    controller = work.call()
    controller.finish()
    assert "has failed meanwhile: train run=one: cancelled" in controller.text
    assert work.job_id("one") != jobs["one"]
    assert work.job_id("two") == jobs["two"]
    for run in jobs:
        work.assert_undisturbed(run)


def test_controller_killed_before_during_and_after(
    cluster: Cluster, make_workflow: Callable[..., Workflow]
) -> None:
    """(g) The controller dies while jobs wait, run and finish: nothing is submitted twice."""
    work = make_workflow(cluster, epochs=16)
    blocker = cluster.run(
        "sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"
    ).strip()
    wait_for(lambda: cluster.states().get(blocker) == "RUNNING", 30, "the node is taken")
    work.write_training(["one", "two", "three"], step_s=0.3)
    first = work.start()
    jobs = {run: work.job_id(run) for run in ("one", "two", "three")}
    first.kill()  # before: all jobs wait
    forget_submission(work, "two")
    stale = work.call(timeout=60)
    assert stale.process.returncode != 0
    assert "the lock in this folder is stale" in stale.text
    assert "snakemake --unlock" in stale.text
    work.unlock()
    second = work.start()
    second.says("re-attached to job")
    cluster.run("scancel", blocker)
    work.wait_for_epochs("one", 1)
    second.kill()  # during: some run
    work.unlock()
    wait_for(
        lambda: (work.folder / "runs/one/metrics.json").exists(),
        120,
        "a job has finished alone",
    )
    third = work.start()
    third.finish()  # after: those that finished meanwhile are done, the others are found again
    assert {run: work.job_id(run) for run in jobs} == jobs
    assert len([state for job_id, state in cluster.states().items() if job_id != blocker]) == 3
    for run in jobs:
        work.assert_undisturbed(run)
    assert "Nothing to be done" in work.call().text


def forget_submission(work: Workflow, run: str) -> None:
    """As if the controller had died right after sbatch: no id in the journal, no function for the job."""
    entry = work.entries()[run]
    folder = work.folder / ".snakemake" / "submitit"
    (folder / "jobs" / f"{entry['job_id']}_submitted.pkl").unlink()
    forgotten = {
        **entry,
        "state": "SUBMITTING",
        "job_id": None,
        "result": None,
        "log": None,
        "error_log": None,
    }
    (folder / "journal" / f"{entry['key']}.json").write_text(json.dumps(forgotten))


def test_interrupt_leaves_jobs(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """Ctrl-C leaves the jobs alone; a job requeued while no controller is alive still finishes."""
    work = make_workflow(cluster, epochs=12)
    work.write_training(["one", "two"], step_s=0.5, **SLOW_UNTIL_DISTURBED)
    controller = work.start()
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 1)
    controller.interrupt()
    assert controller.wait(60) != 0
    assert "At least one job did not complete successfully" not in controller.text
    assert "2 submitted jobs go on" in controller.text
    assert f"scancel {job_id.split('_')[0]}" in controller.text
    cluster.run("scontrol", "requeue", job_id)
    requeued(cluster, job_id)
    wait_for(
        lambda: (work.folder / "runs/one/metrics.json").exists(), 120, "the requeued job has finished alone"
    )
    work.start().finish()
    for run in ("one", "two"):
        work.assert_undisturbed(run)
    assert work.job_id("one") == job_id


def test_interrupt_cancels_jobs(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """Ctrl-C cancels the jobs if the user wants that."""
    work = make_workflow(cluster, epochs=100, settings={"on_interrupt": "cancel"})
    work.write_training(["one", "two"], step_s=0.5)
    controller = work.start()
    job_id = work.job_id("one")
    work.wait_for_epochs("one", 1)
    controller.interrupt()
    assert controller.wait(60) != 0
    wait_for(lambda: cluster.states().get(job_id) == "CANCELLED", 60, "the job is cancelled")
    assert work.entries()["one"]["state"] == "CANCELLED"


def test_controller_stopped_for_a_minute(cluster: Cluster, make_workflow: Callable[..., Workflow]) -> None:
    """slurmctld is stopped for 60 s in the middle: nothing is lost and nothing is submitted twice.

    It is stopped as an admin stops it: killed within seconds of a job's start it forgets that the job runs.
    Two of the jobs run then; the third, whichever it is, can only start when it is back.
    """
    runs = ("one", "two", "three")
    work = make_workflow(cluster, epochs=30)
    work.write_training([*runs], step_s=0.5)
    controller = work.start()
    wait_for(lambda: any(work.history(run) for run in runs), 90, "the first epoch of a run")
    jobs = {run: work.job_id(run) for run in runs}
    slurmctld = cluster.daemon("slurmctld")
    slurmctld.send_signal(signal.SIGTERM)
    slurmctld.wait(30)
    controller.says("Slurm does not answer", 60)
    wait_a_minute()
    cluster.start_controller()
    controller.says("Slurm answers again", 90)
    controller.finish(240)
    assert {run: work.job_id(run) for run in jobs} == jobs
    assert len(cluster.states()) <= 3
    for run in jobs:
        work.assert_undisturbed(run)
        assert work.entries()[run]["restarts"] == 0


def wait_a_minute() -> None:
    """The outage itself."""
    import time

    time.sleep(60)

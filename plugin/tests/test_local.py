"""The same executor without Slurm: cluster `local` cuts, continues and re-attaches jobs of this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workflows import Workflow

pytestmark = pytest.mark.slow


def test_time_limit_continues(make_workflow: Callable[..., Workflow]) -> None:
    """submitit's local controller signals at the limit; the training saves and is started again."""
    work = make_workflow(epochs=20, steps=20, settings={"cluster": "local", "signal_seconds": 35})
    work.write_training(["one"], resources="runtime=1", step_s=0.2, fast_after=1)
    work.call().finish()
    work.assert_undisturbed("one")
    entry = work.entries()["one"]
    assert entry["state"] == "COMPLETED"
    assert entry["restarts"] == entry["timeouts"] >= 1


def test_jobs_survive_the_controller(make_workflow: Callable[..., Workflow]) -> None:
    """The controller is killed; the next call re-attaches to its running jobs."""
    work = make_workflow(epochs=3, settings={"cluster": "local"})
    work.write_training(["one", "two"], step_s=0.01, gate="gate")
    controller = work.start()
    work.wait_for_epochs("one", 1)
    jobs = {run: work.job_id(run) for run in ("one", "two")}
    controller.kill()
    work.unlock()
    controller = work.start()
    controller.says("re-attached(.|\n)*re-attached")
    (work.folder / "gate").touch()
    controller.finish()
    for run in jobs:
        assert work.job_id(run) == jobs[run]
        work.assert_undisturbed(run)


def test_interrupt_cancels_jobs(make_workflow: Callable[..., Workflow]) -> None:
    """Ctrl-C with `cancel` ends the whole family of processes, and the program may still save."""
    work = make_workflow(epochs=500, settings={"cluster": "local", "on_interrupt": "cancel"})
    work.write_training(["one"], step_s=0.2)
    controller = work.start()
    work.wait_for_epochs("one", 1)
    controller.interrupt()
    assert controller.wait(60) != 0
    assert work.entries()["one"]["state"] == "CANCELLED"
    assert (work.folder / "runs" / "one" / "last.json").exists()

"""What a run must find again after an interruption, and what each step must do to it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fbt_core import checkpoint, learner, provenance, state
from fbt_core.learner import Learner
from fbt_core.methods.base import Method
from fbt_core.optimisation import Optimisation
from fbt_core.run import main
from fbt_core.spec import ExecutionSettings
from fbt_core.state import State
from fbt_core.train import StopRequest, leave_out_ended, train
from tests.test_core.engine_runs import (
    EVERYTHING,
    arguments,
    at_step,
    in_child,
    make_spec,
    measured,
    metrics_of,
    network,
    weights_of,
    write_images,
)
from tests.test_core.test_distributed_runs import VIT, method_spec, run_together


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def last_of(runs: Path, spec) -> dict:
    content, faults = checkpoint.load(runs / spec.id, spec)
    assert content is not None and not faults
    return content


def test_average_and_loss_scale_are_those_of_an_undisturbed_run(root, tmp_path):
    spec, whole, cut = make_spec(recipe__precision="float16"), tmp_path / "whole", tmp_path / "cut"
    assert in_child(arguments(spec, whole, root)) == 0
    command = arguments(spec, cut, root)
    assert in_child(command, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(command) == 0
    ends = [last_of(runs, spec) for runs in (whole, cut)]
    assert ends[0]["optimisation"]["scaler"] == ends[1]["optimisation"]["scaler"]
    assert ends[0]["optimisation"]["scaler"]["_growth_tracker"] > 4, "counted from the start, not from step 8"
    assert ends[0]["ema"].keys() == ends[1]["ema"].keys()
    assert all(torch.equal(value, ends[1]["ema"][name]) for name, value in ends[0]["ema"].items())


def test_the_average_moves_towards_the_weights_at_every_step(root, tmp_path, monkeypatch):
    """From the second update on: timm's average begins with a copy of the first."""
    spec, seen = make_spec(recipe__ema_decay=0.75, recipe__epochs=1), []
    update = Learner.update

    def watched(run):
        update(run)
        seen.append(run.method.student.network.conv1[0].weight.detach().clone())

    monkeypatch.setattr(Learner, "update", watched)
    assert main(arguments(spec, tmp_path, root)) == 0
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.75 * expected + 0.25 * weights
    average = last_of(tmp_path, spec)["ema"]["student.network.conv1.0.weight"]
    torch.testing.assert_close(average, expected)
    assert not torch.equal(average, seen[-1])


@pytest.mark.parametrize(("processes", "expected"), [(1, [3, 6, 9, 12, 12]), (2, [4, 8, 12, 12])])
def test_a_checkpoint_is_written_when_it_is_due_and_at_the_end(processes, expected, root, tmp_path, capfd):
    """A minute a step, three minutes to a checkpoint, epochs of six steps; two processes answer later."""
    spec = make_spec(recipe__normalisation_batch=16 // processes)
    file = tmp_path / "saved"

    def prepare(rank: int = 0) -> None:
        minutes, update, save = [0], Learner.update, checkpoint.save

        def one_minute_later(run):
            update(run)
            minutes[0] += 1

        def noted(folder, spec, content):
            with file.open("a") as lines:
                lines.write(f"{content['state']['updates']}\n")
            save(folder, spec, content)

        Learner.update, checkpoint.save = one_minute_later, noted
        learner.time = SimpleNamespace(monotonic=lambda: 60.0 * minutes[0])

    command = arguments(spec, tmp_path, root, checkpoint_minutes=3.0)
    assert run_together(command, processes, prepare) == [0] * processes
    assert [int(line) for line in file.read_text().split()] == expected
    assert "deprecated" not in capfd.readouterr().err


def test_hours_of_gpus_are_added_attempt_by_attempt(root, tmp_path):
    """The first attempt reserves two GPUs, the second three: neither counts for the other's time."""
    spec = make_spec()
    command = arguments(spec, tmp_path, root)

    def reserve(gpus: int, then=lambda: None):
        def prepare() -> None:
            os.environ["SNAKEMAKE_SUBMITIT_GPUS"] = str(gpus)
            then()

        return prepare

    stop = at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert in_child(command, reserve(2, stop)) == 75
    first = last_of(tmp_path, spec)["state"]
    assert first["gpu_seconds"] == pytest.approx(2 * first["seconds"])
    assert in_child(command, reserve(3)) == 0
    whole = last_of(tmp_path, spec)["state"]
    expected = 2 * first["seconds"] + 3 * (whole["seconds"] - first["seconds"])
    assert whole["gpu_seconds"] == pytest.approx(expected)
    assert len(metrics_of(tmp_path, spec)["execution"]["resumed_at"]) == 1
    hours = metrics_of(tmp_path, spec)["execution"]["gpu_hours"]
    assert hours == pytest.approx(expected / 3600, abs=1e-3)
    assert weights_of(tmp_path, spec)


def test_time_until_others_leave_counts_on_the_share_before(monkeypatch):
    """Four runs share two GPUs for ten seconds, then two of them are left; leaving is no training."""
    run = object.__new__(Learner)
    run.state, run.gpus, run.together = State(), 2, 4
    run.state.clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    run.share(2)
    counted = run.state
    assert (counted.seconds, counted.gpu_seconds, counted.epoch_seconds) == (10.0, 5.0, 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 120.0)
    run.count_time()
    assert (counted.seconds, counted.gpu_seconds, counted.epoch_seconds) == (20.0, 15.0, 10.0)


def test_those_left_in_a_pack_share_the_time_from_then_on():
    shares: list[int] = []

    def member(opened: bool) -> SimpleNamespace:
        return SimpleNamespace(folder=SimpleNamespace(opened=opened), share=shares.append)

    members = [member(True), member(False), member(True)]
    leave_out_ended(members)
    assert (len(members), shares) == (2, [2, 2])
    leave_out_ended(members)
    assert shares == [2, 2], "nobody has left since"


def test_an_epochs_loss_is_the_mean_of_its_own_steps(root, tmp_path):
    spec, noted = make_spec(), tmp_path / "losses.txt"

    def prepare() -> None:
        backward = Optimisation.backward

        def watched(optimisation: Optimisation, loss: torch.Tensor) -> None:
            with noted.open("a") as file:
                file.write(f"{float(loss)}\n")
            backward(optimisation, loss)

        Optimisation.backward = watched

    assert in_child(arguments(spec, tmp_path, root), prepare) == 0
    losses = torch.tensor([float(line) for line in noted.read_text().splitlines()]).view(2, -1)
    history = metrics_of(tmp_path, spec)["history"]
    assert [line["loss"] for line in history] == pytest.approx(losses.mean(1).tolist(), rel=1e-5)


def test_a_method_that_parts_of_a_batch_would_change_is_refused(tmp_path, capfd):
    spec, files = method_spec("crd", tmp_path, {**network("student"), **VIT})
    root = write_images(tmp_path / "data", train=64)
    assert in_child(arguments(spec, tmp_path, root, weight_files=files, gradient_accumulation=2)) == 1
    assert "gradient_accumulation: method 'crd' compares the images of a batch" in capfd.readouterr().err


@pytest.mark.parametrize("often", [False, True])
def test_an_epochs_seconds_are_those_of_its_steps(often, root, tmp_path):
    """Clock: 1 s a step, 0.25 s when losses are read, 100 s a test batch, 10 s before an epoch."""
    spec, now = make_spec(), [0.0]

    def takes(seconds: float, name: str) -> None:
        function = getattr(Learner, name)

        def slow(*values):
            now[0] += seconds
            return function(*values)

        setattr(Learner, name, slow)

    def prepare() -> None:
        learner.time = state.time = SimpleNamespace(monotonic=lambda: now[0])
        takes(1, "learn")
        takes(0.25, "read_losses")
        takes(100, "count_batch")
        takes(10, "start_epoch")

    minutes = 1e-9 if often else 60
    assert in_child(arguments(spec, tmp_path, root, checkpoint_minutes=minutes), prepare) == 0
    ended = last_of(tmp_path, spec)["state"]
    if often:
        # Each checkpoint reads losses, also one between an epoch's tests and the next epoch's steps.
        assert all(6.25 <= line["seconds"] < 10 for line in ended["history"])
        return
    # The losses are read once, at the end of an epoch, and by the checkpoint after the last.
    assert [line["seconds"] for line in ended["history"]] == [6.25, 6.25]
    assert ended["training_seconds"] == 12.5
    batches = 2  # of test images
    assert ended["seconds"] == 2 * (10 + 6.25 + batches * 100) + 0.25
    # 12 steps of 16 images.
    assert metrics_of(tmp_path, spec)["images_per_second"] == pytest.approx(12 * 16 / 12.5, abs=0.05)


def test_the_method_knows_the_epoch_also_after_an_interruption(root, tmp_path):
    """ReviewKD's weight grows with it."""
    spec, heard = make_spec(), tmp_path / "heard.txt"

    def listen() -> None:
        def note(method: Method, epoch: int) -> None:
            with heard.open("a") as file:
                file.write(f"{epoch} ")

        Method.start_epoch = note

    def stop() -> None:
        listen()
        at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))()

    command = arguments(spec, tmp_path, root)
    assert in_child(command, stop) == 75
    assert heard.read_text() == "0 1 "
    assert in_child(command, listen) == 0
    assert heard.read_text() == "0 1 1 "


def test_a_flag_that_torch_refuses_to_read_is_unknown():
    class Mixed:
        @property
        def allow_tf32(self):
            raise RuntimeError("mix of the legacy and new APIs to set the TF32 status")

    assert provenance._allows_tf32(Mixed()) is None
    assert provenance._allows_tf32(SimpleNamespace(allow_tf32=True)) is True


@pytest.mark.parametrize("parts", [1, 2])
def test_runs_on_one_stream_learn_what_each_learns_alone(parts, root, tmp_path):
    """One teacher, one pass of it per part of a batch; FCFD draws paths and CRD negatives, each its own."""
    specs, files = [], {}
    for name in ("crd", "fcfd", "kd"):
        spec, files = method_spec(name, tmp_path, {**network("student"), **VIT}, augmentation=EVERYTHING)
        changes = {"epochs": 2, "allow_changed_batch": parts > 1 or None}
        specs.append(spec.model_copy(update={"recipe": spec.recipe.model_copy(update=changes)}))
    together, alone, data = tmp_path / "together", tmp_path / "alone", tmp_path / "data"
    write_images(data, train=64)
    settings = ExecutionSettings(
        threads=1, data_roots={"squares": str(data)}, weight_files=files, gradient_accumulation=parts
    )
    train(specs, settings, together, StopRequest())
    for spec in specs:
        train([spec], settings, alone, StopRequest())
        assert weights_of(together, spec) == weights_of(alone, spec)
        assert measured(together, spec) == measured(alone, spec)

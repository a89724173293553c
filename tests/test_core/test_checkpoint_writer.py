"""Checkpoints are written while training goes on: what was copied, one at a time, and no error is lost."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from fbt_core import checkpoint
from fbt_core.errors import UserError
from fbt_core.learner import Learner
from tests.test_core.engine_runs import arguments, at_step, in_child, make_spec, weights_of, write_images

SPEC = make_spec()
SECONDS = 10.0


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture
def slow(monkeypatch):
    """Writing waits for `go`; the states that were written, in order."""
    go, written, save = threading.Event(), [], checkpoint.save

    def waiting(folder, spec, state):
        assert go.wait(SECONDS)
        written.append(state)
        save(folder, spec, state)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return go, written


def test_what_changes_after_the_copy_is_not_written(slow, tmp_path):
    go, _ = slow
    weights, history = torch.zeros(3), [{"epoch": 1}]
    writer = checkpoint.Writer()
    writer.start(tmp_path, SPEC, {"trainable": {"w": weights}, "state": {"history": history}})
    weights += 1
    history.append({"epoch": 2})
    assert not list(tmp_path.iterdir()), "written before the call came back"
    go.set()
    writer.finish()
    state, _ = checkpoint.load(tmp_path, SPEC)
    assert state["trainable"]["w"].tolist() == [0, 0, 0] and state["state"]["history"] == [{"epoch": 1}]


def test_one_at_a_time_and_the_copy_is_taken_when_the_one_before_is_written(slow, tmp_path):
    go, written = slow
    weights, writer = torch.zeros(1), checkpoint.Writer()
    writer.start(tmp_path, SPEC, {"w": weights})
    weights += 1
    threading.Timer(0.2, go.set).start()
    writer.start(tmp_path, SPEC, {"w": weights})  # waits for the timer
    assert len(written) >= 1 and sum(thread.name == "checkpoint" for thread in threading.enumerate()) <= 1
    writer.finish()
    assert [state["w"].item() for state in written] == [0, 1]


def test_an_error_is_raised_once_at_the_next_step(monkeypatch, tmp_path):
    def full(*values):
        raise UserError("cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    writer = checkpoint.Writer()
    writer.start(tmp_path, SPEC, {})
    while writer._thread.is_alive():
        time.sleep(0.01)
    with pytest.raises(UserError, match="No space left"):
        writer.check()
    writer.check()
    writer.start(tmp_path, SPEC, {})
    with pytest.raises(UserError, match="No space left"):
        writer.finish()


def test_a_full_disk_ends_the_run_a_few_steps_later_with_one_line(root, tmp_path, capfd):
    def fill() -> None:
        def full(fd):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full

    command = arguments(SPEC, tmp_path, root, checkpoint_minutes=1e-9)
    assert in_child(command, at_step(3, fill)) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "No space left on device" in errors[0]


def test_a_signal_while_a_checkpoint_is_written_loses_nothing(root, tmp_path):
    """The writer is slow; the signal comes steps after the copy: the state at the signal is kept."""

    def prepare() -> None:
        write, first = checkpoint.save, iter([1.0])

        def slow(folder, spec, state):
            time.sleep(next(first, 0.0))
            write(folder, spec, state)

        checkpoint.save = slow
        due = Learner.checkpoint_due.fget
        Learner.checkpoint_due = property(lambda run: run.state.updates == 2 and due(run))
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGUSR2))()

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = arguments(SPEC, cut, root, checkpoint_minutes=1e-9)
    assert in_child(command, prepare) == 75
    state, faults = checkpoint.load(cut / SPEC.id, SPEC)
    assert not faults and state["state"]["updates"] == 5
    previous = checkpoint.read(cut / SPEC.id / checkpoint.PREVIOUS, SPEC)
    assert previous["state"]["updates"] == 2
    assert in_child(arguments(SPEC, cut, root)) == 0
    assert in_child(arguments(SPEC, whole, root)) == 0
    assert weights_of(cut, SPEC) == weights_of(whole, SPEC)

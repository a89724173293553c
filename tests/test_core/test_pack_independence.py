"""What goes wrong for one run of a pack ends that run alone; the others end with the bytes of each alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fbt_core import checkpoint, train
from fbt_core.errors import TooLarge, UserError
from fbt_core.learner import Learner
from fbt_core.packs import read_marker
from fbt_core.publish import main as publish
from fbt_core.run import main
from fbt_core.torchrun import TOO_LARGE
from tests.test_core.engine_runs import (
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
from tests.test_core.test_distributed_runs import run_together

SPECS = [make_spec(recipe__optimizer__learning_rate=rate) for rate in (0.05, 0.02, 0.01)]
FIRST, SECOND, THIRD = (spec.id for spec in SPECS)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> Path:
    """The folder of the three runs, each trained alone."""
    runs = tmp_path_factory.mktemp("alone")
    for spec in SPECS:
        assert in_child(arguments(spec, runs, root)) == 0
    return runs


@pytest.fixture(scope="module")
def alone_in_two(root, tmp_path_factory) -> Path:
    """The same, each trained by two processes."""
    runs = tmp_path_factory.mktemp("alone_in_two")
    for spec in SPECS:
        assert run_together(arguments(spec, runs, root), 2) == [0, 0]
    return runs


def pack(runs: Path, root: Path, specs=SPECS, **settings) -> list[str]:
    command = arguments(specs[0], runs, root, **settings)
    command += [word for spec in specs[1:] for word in ("--spec", spec.model_dump_json())]
    return [*command, "--pack", str(runs / "pack.json")]


def as_alone(runs: Path, alone: Path, spec) -> bool:
    """Publish the run and compare it with the one trained alone."""
    assert publish([spec.id, "--runs", str(runs), "--pack", str(runs / "pack.json")]) == 0
    return weights_of(runs, spec) == weights_of(alone, spec) and measured(runs, spec) == measured(alone, spec)


def check_that_the_second_failed(runs: Path, alone: Path, capfd, words: str) -> None:
    endings = read_marker(runs / "pack.json")
    assert {run: ending.state for run, ending in endings.items()} == {
        FIRST: "ready",
        SECOND: "failed",
        THIRD: "ready",
    }
    assert words in endings[SECOND].error and "\n" not in endings[SECOND].error
    progress = json.loads((runs / SECOND / "progress.json").read_text())
    assert progress["state"] == "failed" and words in progress["error"]
    assert words in (runs / SECOND / "log.txt").read_text()
    reported = capfd.readouterr().err
    assert "Traceback" not in reported and f"{SECOND}: " in reported
    assert all(as_alone(runs, alone, spec) for spec in (SPECS[0], SPECS[2]))
    assert publish([SECOND, "--runs", str(runs), "--pack", str(runs / "pack.json")]) == 1
    assert words in capfd.readouterr().err


def of_second(patched: type, name: str, before: Callable[[Learner, int], None]) -> Callable[[], None]:
    """Prepares a child so that `before` runs before each call of a learner's method for the second run."""

    def prepare() -> None:
        method, calls = getattr(patched, name), iter(range(1, 1000))

        def watched(learner, *values):
            if learner.spec.id == SECOND:
                before(learner, next(calls))
            return method(learner, *values)

        setattr(patched, name, watched)

    return prepare


def make_nan(learner: Learner, call: int) -> None:
    if call == 8:
        with torch.no_grad():
            next(learner.method.student.parameters()).fill_(torch.nan)


def refuse(learner: Learner, call: int) -> None:
    if call == 8:
        raise UserError("this run cannot go on")


def fail_to_save() -> None:
    save = checkpoint._write

    def failing(file, content):
        if content["run"] == SECOND:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, content)

    checkpoint._write = failing


def fail_to_build() -> None:
    make = train.make_method

    def failing(spec, *values):
        if spec.id == SECOND:
            raise UserError("this run cannot be built")
        return make(spec, *values)

    train.make_method = failing


TROUBLES = {
    "nan": (of_second(Learner, "learn", make_nan), "the loss is not finite"),
    "error_in_a_step": (of_second(Learner, "learn", refuse), "this run cannot go on"),
    "error_in_an_update": (of_second(Learner, "update", refuse), "this run cannot go on"),
    "full_disk": (fail_to_save, "No space left on device"),
    "error_while_building": (fail_to_build, "this run cannot be built"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_of_one_run_ends_that_run_alone(name, root, alone, tmp_path, capfd):
    trouble, words = TROUBLES[name]
    assert in_child(pack(tmp_path, root, checkpoint_minutes=1e-9, log_steps=1), trouble) == 0
    check_that_the_second_failed(tmp_path, alone, capfd, words)


@pytest.mark.parametrize("name", ["nan", "full_disk", "error_while_building"])
def test_two_processes_agree_on_who_leaves(name, root, alone_in_two, tmp_path, capfd):
    """The first process alone meets the full disk; none waits for the run that left."""
    trouble, words = TROUBLES[name]
    command = pack(tmp_path, root, checkpoint_minutes=1e-9, log_steps=1)
    assert run_together(command, 2, lambda rank: trouble()) == [0, 0]
    check_that_the_second_failed(tmp_path, alone_in_two, capfd, words)


def test_errors_of_a_pack_without_marker_end_it_with_1(root, tmp_path, capfd):
    command = pack(tmp_path, root)[:-2]
    assert in_child(command, fail_to_build) == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"error: {SECOND}: this run cannot be built"
    assert weights_of(tmp_path, SPECS[0]) and weights_of(tmp_path, SPECS[2])


def test_an_error_of_what_all_share_ends_all(root, tmp_path, capfd):
    entry = network("teacher", weights=f"file:{'0' * 64}")
    specs = [SPECS[0], make_spec(teacher=entry, recipe__optimizer__learning_rate=0.02)]
    assert in_child(pack(tmp_path, root, specs)) == 1
    assert "no path is given for this file" in capfd.readouterr().err
    assert not (tmp_path / "pack.json").exists()


def test_members_at_different_steps_meet(root, alone, tmp_path):
    """One is complete, one is resumed in its second epoch, one joins from its first step."""
    assert in_child(arguments(SPECS[0], tmp_path, root)) == 0
    stop = at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert in_child(arguments(SPECS[1], tmp_path, root), stop) == 75
    command = pack(tmp_path, root)
    # Stopped once before the two meet, once when they are together.
    assert in_child(command, at_step(3, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(command, at_step(7, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(command) == 0
    states = [ending.state for ending in read_marker(tmp_path / "pack.json").values()]
    assert states == ["complete", "ready", "ready"]
    assert all(as_alone(tmp_path, alone, spec) for spec in SPECS)
    assert metrics_of(tmp_path, SPECS[2])["execution"]["pack"] == [SECOND]


def test_a_member_is_taken_out_and_trained_alone(root, alone, tmp_path):
    command = pack(tmp_path, root)
    assert in_child(command, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(arguments(SPECS[1], tmp_path, root)) == 0
    assert weights_of(tmp_path, SPECS[1]) == weights_of(alone, SPECS[1])
    assert in_child(command) == 0
    assert all(as_alone(tmp_path, alone, spec) for spec in SPECS)


def test_those_ahead_go_on_when_the_one_behind_fails(root, alone, tmp_path, capfd):
    """It fails in its second step, while the others wait in their second epoch."""
    command = pack(tmp_path, root, [SPECS[0], SPECS[2]])
    assert in_child(command, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75

    def refuse_early(learner, call):
        if call == 2:
            raise UserError("this run cannot go on")

    assert in_child(pack(tmp_path, root), of_second(Learner, "learn", refuse_early)) == 0
    check_that_the_second_failed(tmp_path, alone, capfd, "this run cannot go on")


def test_halves_train_one_after_the_other_if_the_memory_does_not_hold_all(root, alone, tmp_path, capfd):
    """More than two runs do not fit, in the first step."""

    def prepare():
        step = train.train_step

        def limited(learners, *values):
            if len(learners) > 2:
                learners[0].method.student.requires_grad_(False).zero_grad()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
            step(learners, *values)

        train.train_step = limited

    assert in_child(pack(tmp_path, root), prepare) == 0
    assert {ending.state for ending in read_marker(tmp_path / "pack.json").values()} == {"ready"}
    assert all(as_alone(tmp_path, alone, spec) for spec in SPECS)
    executions = [metrics_of(tmp_path, spec)["execution"] for spec in SPECS]
    assert [execution["pack"] for execution in executions] == [[SECOND], [FIRST], []]
    assert [execution["pack_too_large"] for execution in executions] == [[3], [3], [3]]
    assert capfd.readouterr().err.count("the memory does not hold 3 runs: 2 go on, then 1") == 1


def limit_memory(runs: int, learner_that_is_full: str = "") -> None:
    """From now on a step of more than so many runs, or of a certain one, finds the memory full."""
    step = train.train_step

    def limited(learners, *values):
        if len(learners) > runs or learner_that_is_full in [learner.spec.id for learner in learners]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        step(learners, *values)

    train.train_step = limited


def test_several_processes_begin_anew_with_halves(root, alone_in_two, tmp_path, monkeypatch, capfd):
    """One of two meets the full memory while the other waits for it; torchrun then starts both again."""
    (tmp_path / "notes").touch()
    monkeypatch.setenv(TOO_LARGE, str(tmp_path / "notes"))
    command = pack(tmp_path, root)
    limit = lambda rank: limit_memory(2) if rank else None  # noqa: E731
    assert run_together(command, 2, limit) == [UserError.exit_code, TooLarge.exit_code]
    assert not (tmp_path / "pack.json").exists()
    assert run_together(command, 2, limit) == [0, 0]
    assert {ending.state for ending in read_marker(tmp_path / "pack.json").values()} == {"ready"}
    assert all(as_alone(tmp_path, alone_in_two, spec) for spec in SPECS)
    executions = [metrics_of(tmp_path, spec)["execution"] for spec in SPECS]
    assert [execution["pack"] for execution in executions] == [[SECOND], [FIRST], []]
    assert [execution["pack_too_large"] for execution in executions] == [[3], [3], [3]]
    assert capfd.readouterr().err.count("the memory does not hold 3 runs: 2 go on, then 1") == 1


@pytest.mark.slow
def test_torchrun_starts_the_halves_and_a_run_that_is_too_large_alone_fails_alone(root, tmp_path):
    """Started three times: with both runs, with one after the other, and when the second fits not even so."""
    torchrun = ["-m", "fbt_core.torchrun", "--standalone", "--nproc-per-node=2"]
    command = pack(tmp_path, root, SPECS[:2], device="cpu")
    program = ["-m", "tests.test_core.test_pack_independence", SECOND, *command]
    done = subprocess.run([sys.executable, *torchrun, *program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    endings = read_marker(tmp_path / "pack.json")
    assert [ending.state for ending in endings.values()] == ["ready", "failed"]
    assert "the GPU's memory is full" in endings[SECOND].error
    progress = json.loads((tmp_path / SECOND / "progress.json").read_text())
    assert progress["state"] == "failed" and "the GPU's memory is full" in progress["error"]
    said = [line for line in done.stderr.splitlines() if "the memory does not hold" in line]
    assert said == [f"{FIRST}: the memory does not hold 2 runs: 1 go on, then 1"]
    assert "Traceback" not in done.stderr


def test_a_run_that_the_memory_does_not_hold_alone_fails_alone(root, alone, tmp_path, capfd):
    def full(learner, call):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")

    assert in_child(pack(tmp_path, root), of_second(Learner, "learn", full)) == 0
    check_that_the_second_failed(tmp_path, alone, capfd, "the GPU's memory is full")


def test_the_hours_of_a_pack_are_shared(root, tmp_path, monkeypatch):
    """Two GPUs are reserved: what the runs count is together what the pack took."""
    monkeypatch.setenv("SNAKEMAKE_SUBMITIT_GPUS", "2")
    assert in_child(pack(tmp_path, root)) == 0
    states = [checkpoint.load(tmp_path / spec.id, spec)[0]["state"] for spec in SPECS]
    for state in states:
        assert state["gpu_seconds"] == pytest.approx(2 * state["seconds"] / 3, rel=1e-6)


if __name__ == "__main__":  # what torchrun starts: the engine, with a memory that holds one run, but not all
    limit_memory(1, sys.argv[1])
    sys.exit(main(sys.argv[2:]))

"""What can go wrong in a run: one clear line, an exit code, no half result, and a rerun that continues."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fbt_core import checkpoint
from fbt_core.data import feed
from fbt_core.errors import UserError
from fbt_core.files import write_file
from fbt_core.learner import Learner
from fbt_core.methods.base import Method
from fbt_core.optimisation import Optimisation
from tests.test_core.engine_runs import (
    EVERYTHING,
    KD,
    arguments,
    at_step,
    in_child,
    make_spec,
    network,
    weights_of,
    write_images,
)

SPEC = make_spec()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory) -> bytes:
    runs = tmp_path_factory.mktemp("whole")
    assert in_child(arguments(SPEC, runs, root)) == 0
    return weights_of(runs, SPEC)


@pytest.fixture
def stopped(root, tmp_path) -> Path:
    """A folder of runs with one run stopped in its second epoch, both checkpoints there."""
    command = arguments(SPEC, tmp_path, root, checkpoint_minutes=1e-9)
    assert in_child(command, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    return tmp_path


def one_line(capfd, *words: str) -> None:
    """The last line on stderr holds all the words, and there is no traceback."""
    text = capfd.readouterr().err
    assert "Traceback" not in text
    last = text.strip().splitlines()[-1]
    assert all(word in last for word in words), last


def assert_no_result(runs: Path, spec=SPEC) -> None:
    names = {path.name for path in (runs / spec.id).glob("*")}
    assert not names & {"metrics.json", "weights.safetensors"}


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:middle], "empty": b"", "flipped": bytearray(content)}[how]
    if how == "flipped":
        changed[middle] ^= 1
    path.write_bytes(bytes(changed))


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_damaged_last_checkpoint_falls_back_to_the_one_before(stopped, root, expected, how):
    folder = stopped / SPEC.id
    damage(folder / "last.pt", how)
    assert in_child(arguments(SPEC, stopped, root)) == 0
    assert "last.pt is truncated or damaged" in (folder / "log.txt").read_text()
    assert weights_of(stopped, SPEC) == expected


def test_both_checkpoints_damaged_is_an_error_that_overwrites_nothing(stopped, root, capfd):
    folder = stopped / SPEC.id
    for name in ("last.pt", "previous.pt"):
        damage(folder / name, "cut")
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "previous.pt")}
    assert in_child(arguments(SPEC, stopped, root)) == 1
    one_line(capfd, "last.pt", "previous.pt", "nothing was overwritten")
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert_no_result(stopped)


def test_checkpoint_of_another_spec_is_refused(stopped, root, capfd):
    other = make_spec(seed=4)
    (stopped / SPEC.id).rename(stopped / other.id)
    assert in_child(arguments(other, stopped, root)) == 1
    one_line(capfd, "checkpoint of another run", SPEC.id, other.id)


class Malicious:
    """What a full unpickle would run: it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("a-checkpoint-was-run",)


@pytest.mark.parametrize("content", [Malicious(), [1, 2], b"no torch file"])
def test_a_malicious_or_foreign_checkpoint_is_one_line_and_nothing_of_it_is_run(
    stopped, root, capfd, monkeypatch, content
):
    """The digest at a file's end is no signature: whoever can write the file can write that as well."""
    monkeypatch.chdir(stopped)
    path, body = stopped / SPEC.id / "last.pt", io.BytesIO()
    body.write(content) if isinstance(content, bytes) else torch.save(content, body)
    written = body.getvalue() + checkpoint.MARK + hashlib.sha256(body.getvalue()).digest()
    path.write_bytes(written)
    assert in_child(arguments(SPEC, stopped, root)) == 1
    one_line(capfd, str(path), "refused: it is no checkpoint of this engine", "was run; delete it")
    assert path.read_bytes() == written and not Path("a-checkpoint-was-run").exists()
    assert_no_result(stopped)


def test_a_teacher_that_was_trained_again_since_a_run_began_is_refused(root, tmp_path, capfd):
    """Going on with it would be a run that two teachers taught. What a finished run has read stays noted."""
    spec = make_spec(
        method={"name": "kd", "parameters": KD, "revision": 1}, teacher=network(weights=f"run:{SPEC.id}")
    )
    assert in_child(arguments(SPEC, tmp_path, root)) == 0
    stop = at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert in_child(arguments(spec, tmp_path, root), stop) == 75
    teacher = tmp_path / SPEC.id / "weights.safetensors"
    first = teacher.read_bytes()
    state = {name: tensor + 1 for name, tensor in safetensors.torch.load(first).items()}
    teacher.write_bytes(safetensors.torch.save(state))
    assert in_child(arguments(spec, tmp_path, root)) == 1
    one_line(capfd, "its teacher has other weights", "delete the run's folder")

    teacher.write_bytes(first)
    assert in_child(arguments(spec, tmp_path, root)) == 0
    metrics = tmp_path / spec.id / "metrics.json"
    read = json.loads(metrics.read_text())["teacher_weights_sha256"]
    metrics.unlink()
    teacher.write_bytes(safetensors.torch.save(state))
    assert in_child(arguments(spec, tmp_path, root)) == 0
    assert (
        json.loads(metrics.read_text())["teacher_weights_sha256"] == read == hashlib.sha256(first).hexdigest()
    )


def test_checkpoint_of_another_version_of_the_engine_is_one_line(stopped, root, capfd, monkeypatch):
    written = checkpoint.FORMAT
    monkeypatch.setattr(checkpoint, "FORMAT", written + 1)
    assert in_child(arguments(SPEC, stopped, root)) == 1
    what = f"was written by another version of the engine (format {written}, now {written + 1})"
    one_line(capfd, what, "delete it to train")


def test_run_killed_between_the_two_renames_continues_from_the_new_state(stopped, root, expected):
    folder = stopped / SPEC.id
    (folder / "last.pt").rename(folder / "next.pt")
    state, faults = checkpoint.load(folder, SPEC)
    position = {name: state["state"][name] for name in ("epoch", "step", "updates")}
    assert position == {"epoch": 1, "step": 2, "updates": 8}
    assert not faults
    assert in_child(arguments(SPEC, stopped, root)) == 0
    assert weights_of(stopped, SPEC) == expected


def test_non_finite_loss_names_term_step_and_rate(root, tmp_path, capfd, expected):
    def poison():
        forward, calls = Method.forward, iter(range(1, 1000))

        def poisoned(method, batch, teacher):
            result = forward(method, batch, teacher)
            if next(calls) == 9:
                result["terms"] = {name: term * torch.nan for name, term in result["terms"].items()}
                result["loss"] = result["loss"] * torch.nan
            return result

        Method.forward = poisoned

    assert in_child(arguments(SPEC, tmp_path, root), poison) == 1
    one_line(capfd, "not finite", "nan", "epoch 2", "step 3", "learning rate", "last good checkpoint is kept")
    assert_no_result(tmp_path)
    assert '"failed"' in (tmp_path / SPEC.id / "progress.json").read_text()
    assert in_child(arguments(SPEC, tmp_path, root)) == 0
    assert weights_of(tmp_path, SPEC) == expected


@pytest.mark.parametrize("ema", [False, True])
def test_non_finite_test_loss_stays_out_of_the_history(root, tmp_path, capfd, expected, ema):
    def poison():
        evaluate, calls = Learner.count_test_batch, iter(range(1, 1000))

        def poisoned(learner, network, *batch):
            counts, classes = evaluate(learner, network, *batch)
            is_ema = network is not learner.method.get_eval_model()
            return (counts * torch.nan if is_ema == ema and next(calls) > 2 else counts), classes

        Learner.count_test_batch = poisoned

    command = arguments(SPEC, tmp_path, root, checkpoint_minutes=1e-9)
    assert in_child(command, poison) == 1
    one_line(capfd, "loss on the test images is not finite (nan)", "epoch 2", "last good checkpoint is kept")
    assert_no_result(tmp_path)
    assert len((tmp_path / SPEC.id / "history.jsonl").read_text().splitlines()) == 1
    assert in_child(command) == 0
    assert "resumed at epoch 2, step 6" in (tmp_path / SPEC.id / "log.txt").read_text()
    assert weights_of(tmp_path, SPEC) == expected


def test_weights_that_a_gradient_made_nan_are_not_saved(root, tmp_path, capfd, expected):
    """The loss of that step is finite: only the weights show it."""

    def poison():
        backward, calls = Optimisation.backward, iter(range(1, 1000))

        def poisoned(optimisation, loss):
            backward(optimisation, loss)
            if next(calls) == 9:
                next(optimisation.module.parameters()).grad.fill_(torch.nan)

        Optimisation.backward = poisoned

    command = arguments(SPEC, tmp_path, root, checkpoint_minutes=1e-9)
    assert in_child(command, poison) == 1
    one_line(capfd, "weights are not finite", "student", "epoch 2", "step 3", "last good checkpoint is kept")
    assert in_child(command) == 0
    assert "resumed at epoch 2, step 2" in (tmp_path / SPEC.id / "log.txt").read_text()
    assert weights_of(tmp_path, SPEC) == expected


def test_checkpoint_that_the_disk_does_not_give_falls_back_to_the_one_before(stopped, root, expected):
    folder = stopped / SPEC.id

    def break_reading():
        read = Path.read_bytes

        def broken(path):
            if path.name == "last.pt":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(path)

        Path.read_bytes = broken

    assert in_child(arguments(SPEC, stopped, root), break_reading) == 0
    assert "last.pt cannot be read (Input/output error)" in (folder / "log.txt").read_text()
    assert weights_of(stopped, SPEC) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(root, tmp_path, capfd, expected):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        assert in_child(arguments(SPEC, disk, root)) == 1
        one_line(capfd, "cannot be written", "No space left on device", "free some space")
        assert_no_result(disk)
        assert not list((disk / SPEC.id).glob(".*.part"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert in_child(arguments(SPEC, disk, root)) == 0
        assert weights_of(disk, SPEC) == expected
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_error_of_the_gpu_in_a_checkpoint_is_not_taken_for_a_full_disk(tmp_path):
    def fail(file):
        file.write(b"x")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write_file(tmp_path / "x", fail)
    assert not list(tmp_path.iterdir())


class BrokenDisk:
    def __init__(self, code: int) -> None:
        self.code = code

    def write(self, content):
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_torchs_writer_on_a_failing_disk_tells_what_the_disk_said(tmp_path, monkeypatch, code):
    def fail(hashing, content):
        hashing.file.file = BrokenDisk(code)
        return hashing.file.write(content)

    monkeypatch.setattr(checkpoint._Hashing, "write", fail)
    with pytest.raises(UserError, match=os.strerror(code)):
        checkpoint.save(tmp_path, SPEC, {"x": torch.zeros(1000)})
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(root, tmp_path, capfd):
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    assert in_child(arguments(SPEC, blocked, root)) == 1
    one_line(capfd, "runs", "cannot be written")


def test_loader_process_that_dies(root, tmp_path, capfd):
    spec = make_spec(EVERYTHING)

    def prepare():
        made, parent = feed.Batches.__getitem__, os.getpid()

        def deadly(batches, key):
            if os.getpid() != parent and key.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return made(batches, key)

        feed.Batches.__getitem__ = deadly

    assert in_child(arguments(spec, tmp_path, root, workers=1), prepare) == 1
    one_line(capfd, "a loader process died", "run the same command again")
    assert_no_result(tmp_path, spec)
    assert in_child(arguments(spec, tmp_path, root, workers=1)) == 0
    assert in_child(arguments(spec, tmp_path / "whole", root)) == 0
    assert weights_of(tmp_path, spec) == weights_of(tmp_path / "whole", spec)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_another_process_trains_is_waited_for(interrupted, root, tmp_path, expected):
    """As from a second clone whose results are the same folder."""
    command, said = arguments(SPEC, tmp_path, root), tmp_path / "said.txt"

    def call_again() -> None:
        with said.open("w") as file:
            second = subprocess.Popen([sys.executable, "-m", "fbt_core.run", *command], stderr=file)
        wait_for_text(said, f"another process is training {SPEC.id}; waiting for its end")
        if interrupted:
            second.send_signal(signal.SIGUSR2)
            if second.wait(60) != 75:
                os._exit(98)
        else:
            time.sleep(2.5)  # it looks again each second

    assert in_child(command, at_step(2, call_again)) == 0
    last = "stopped while another process was training the run" if interrupted else "is complete; delete its"
    wait_for_text(said, last)
    assert said.read_text().count("waiting for its end") == 1
    assert weights_of(tmp_path, SPEC) == expected
    assert json.loads((tmp_path / SPEC.id / "progress.json").read_text())["error"] is None


def wait_for_text(path: Path, text: str) -> None:
    end = time.monotonic() + 300
    while text not in path.read_text():
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.1)


def test_complete_run_is_left_alone(root, tmp_path, capfd):
    assert in_child(arguments(SPEC, tmp_path, root)) == 0
    before = (tmp_path / SPEC.id / "metrics.json").stat().st_mtime_ns
    assert in_child(arguments(SPEC, tmp_path, root)) == 0
    assert (tmp_path / SPEC.id / "metrics.json").stat().st_mtime_ns == before
    one_line(capfd, "is complete")


def test_results_deleted_after_the_end_come_back_without_training(root, tmp_path, expected):
    command = arguments(SPEC, tmp_path, root)
    assert in_child(command) == 0
    for name in ("metrics.json", "weights.safetensors"):
        (tmp_path / SPEC.id / name).unlink()
    assert in_child(command, at_step(1, lambda: os._exit(97))) == 0
    assert weights_of(tmp_path, SPEC) == expected


def test_data_root_missing_stops_before_anything_is_written(tmp_path, capfd):
    for root in ("", str(tmp_path / "nowhere")):
        command = arguments(SPEC, tmp_path / "runs", Path(root) if root else Path())
        command[3] = command[3].replace('"squares":"."', '"squares":""')
        assert in_child(command) == 1
        one_line(capfd, "data_roots.squares")
        assert not (tmp_path / "runs" / SPEC.id).exists()


def test_paper_scale_without_cuda_names_the_setting(root, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert in_child(arguments(SPEC, tmp_path, root, allow_cpu=False)) == 1
    one_line(capfd, "device: auto", "device: cpu")
    assert not (tmp_path / SPEC.id).exists()
    assert in_child(arguments(SPEC, tmp_path, root, allow_cpu=False, device="cpu")) == 0


def test_missing_teacher_run_is_named(root, tmp_path, capfd):
    method = {"name": "kd", "parameters": KD, "revision": 1}
    spec = make_spec(method=method, teacher=network(weights=f"run:{SPEC.id}"))
    assert in_child(arguments(spec, tmp_path, root)) == 1
    one_line(capfd, SPEC.id, "weights of this run are missing")


def test_a_bug_in_building_a_method_shows_its_traceback(root, tmp_path, capfd, monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr("fbt_core.train.build_method", fail)
    assert in_child(arguments(SPEC, tmp_path, root)) == 99  # an exception that nothing has caught
    text = capfd.readouterr().err
    assert "Traceback" in text and text.strip().endswith("ValueError: a bug")


def test_a_network_that_does_not_build_is_one_line(root, tmp_path, capfd):
    from tests.test_core.engine_runs import network

    spec = make_spec(student=network(no_such_option=1))
    assert in_child(arguments(spec, tmp_path, root)) == 1
    one_line(capfd, "error: network 'resnet18'", "no_such_option")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["RunSpec"]),
        ('{"seed": "3"}', ["seed", "dataset"]),
        ("no/such/file.json", ["no/such/file.json", "cannot be read"]),
    ],
)
def test_bad_command_line(tmp_path, capfd, text, words):
    assert in_child(["--spec", text, "--runs", str(tmp_path)]) == 1
    one_line(capfd, *words)


def test_command_line_in_a_process_of_its_own(root, tmp_path, expected):
    done = subprocess.run(
        [sys.executable, "-m", "fbt_core.run", *arguments(SPEC, tmp_path, root)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert weights_of(tmp_path, SPEC) == expected

"""The checks of `make test-gpu` with the CPU in the role of the GPU: they pass what is right, no more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fbt_core.measure import bench
from tests.test_core.engine_runs import network
from tests.test_core.methods_kit import PAIRS, in_process_of_its_own
from tests.test_gpu import checks, test_gpu

ROOT = Path(__file__).parents[2]
WIDE = {"channels": (8, 8, 8, 8), "stem_width": 8}  # of fewer, oneDNN overwrites memory in channels_last
CPU = torch.device("cpu")
PAIR = PAIRS["msa", "cnn"]


@pytest.mark.parametrize("name", ["scratch", "kd", "fbt", "crd"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_good_step_passes(name, kind):
    method = checks.prepare(name, PAIR, CPU)
    again = checks.twin(method)
    batch = checks.fixed_batch(CPU)
    result = checks.train_step(method, batch, kind, CPU)
    checks.check_finite_and_moving(result, name)
    checks.check_like(result, checks.train_step(again, batch, kind, CPU), 1e-6, name)


def test_a_step_in_another_precision_is_not_like_float32_to_the_last_digit():
    batch = checks.fixed_batch(CPU)
    exact = checks.train_step(checks.prepare("kd", PAIR, CPU), batch, "float32", CPU)
    rough = checks.train_step(checks.prepare("kd", PAIR, CPU), batch, "bfloat16", CPU)
    with pytest.raises(AssertionError, match="expected"):
        checks.check_like(rough, exact, 1e-7, "kd")


def test_what_is_not_finite_or_does_not_move_is_caught():
    method, batch = checks.prepare("kd", PAIR, CPU), checks.fixed_batch(CPU)
    batch.images[0, 0, 0, 0] = float("nan")
    with pytest.raises(AssertionError, match="kd: not finite"):
        checks.check_finite_and_moving(checks.train_step(method, batch, "float32", CPU), "kd")
    still = checks.StepResult({"loss": 1.0}, moved=0.0, seconds=0.1)
    with pytest.raises(AssertionError, match="largest change of a weight is 0"):
        checks.check_finite_and_moving(still, "kd")


@pytest.fixture
def stand_in(monkeypatch):
    """The tests of the GPU, with the CPU for it."""
    monkeypatch.setattr(test_gpu, "GPU", CPU)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda method: compiled(method, backend="eager"))
    monkeypatch.setattr(checks, "ROWS", [])
    return test_gpu


@pytest.mark.parametrize(
    ("name", "kind"), [("fbt", "float32"), ("crd", "float16"), ("rsd", "bfloat16"), ("kd", "tf32")]
)
def test_the_steps_of_a_gpu_pass_on_the_cpu(stand_in, name, kind):
    """Placement is another test: tests/test_core/test_training_memory.py, on a device in name only."""
    stand_in.test_a_step_is_finite_and_in_float32_the_cpus(name, ("cnn", "msa"), kind)
    stand_in.test_a_step_waits_for_nothing(name)


@pytest.mark.slow
@in_process_of_its_own
def test_counted_and_measured_memory_are_compared(monkeypatch):
    checks.compare_peak("kd", CPU, images=2)
    (what, _), (_, _) = checks.ROWS
    assert what == "kd, float32: peak / counted"
    monkeypatch.setattr(checks, "counted_peak_mb", lambda *arguments: 1.0)
    with pytest.raises(AssertionError, match="peak / counted"):
        checks.compare_peak("kd", CPU, images=2)


@in_process_of_its_own
def test_loaders_and_a_step_are_compared(monkeypatch):
    monkeypatch.setattr(bench, "LOADER_SECONDS", 0.1)
    checks.compare_loaders_and_step(network(), CPU, size=32, batch=8, seconds=0.0)
    ((what, value),) = checks.ROWS
    assert "loaders of" in what and value.endswith("images a second")


@pytest.mark.slow
@in_process_of_its_own
def test_what_settings_are_worth_is_noted(stand_in):
    checks.compare_settings(network(**WIDE), CPU, size=32, batch=8, seconds=0.0)
    names = [what.split(", ")[2].split(":")[0] for what, _ in checks.ROWS]
    assert names == ["none", "channels_last", "cudnn_benchmark", "compile"]
    assert not torch.backends.cudnn.benchmark


@pytest.mark.slow
@in_process_of_its_own
def test_compiled_and_killed_trainings_pass_on_the_cpu(stand_in, tmp_path):
    stand_in.test_compiled_and_channels_last_steps_are_the_plain_one("kd")
    stand_in.test_a_killed_training_resumes_and_ends_like_an_undisturbed_one(tmp_path)


def test_without_a_gpu_all_of_it_is_skipped_and_the_command_ends_well():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu/test_gpu.py"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "FBT_GPU_ALL": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ skipped in", done.stdout, re.MULTILINE), done.stdout

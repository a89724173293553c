"""Plain trainings on one machine share its GPUs: fake slots, real training processes."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_slots
import pytest

from tests.test_core.engine_runs import arguments, make_spec, metrics_of, write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake_gpus(tmp_path):
    """Names of two fake GPUs that no other test has, in the environment of a job."""
    names = [f"fake-{os.getpid()}-{tmp_path.name}-{number}" for number in range(2)]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    yield {**environment, gpu_slots.CHOSEN: ",".join(names)}
    for path in gpu_slots.shared_folder().glob(f"gpu-slot-fake-{os.getpid()}-*"):
        path.unlink()


def test_a_training_waits_for_a_gpu_of_its_own_and_records_it(tmp_path, fake_gpus):
    root, spec = write_images(tmp_path / "data"), make_spec()
    busy = gpu_slots.take(1, fake_gpus)
    waiting = gpu_slots.take(1, fake_gpus)
    options = arguments(spec, tmp_path / "runs", root, device="cpu")
    command = [sys.executable, "-m", "fbt_core.launch", "1", *options]
    with subprocess.Popen(command, cwd=ROOT, env=fake_gpus, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr.readline() == "waiting for 1 of 2 GPUs of this machine to be free\n"
        assert training.poll() is None
        waiting.release()
        assert training.wait(120) == 0, training.stderr.read()
    assert metrics_of(tmp_path / "runs", spec)["execution"]["cuda_visible_devices"] == waiting.devices[0]
    busy.release()


def test_a_training_that_wants_more_gpus_than_there_are_is_refused(tmp_path, fake_gpus):
    command = [sys.executable, "-m", "fbt_core.launch", "3", "--spec", "{}", "--runs", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=fake_gpus, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: resources: gpu: 3 GPUs are wanted, and this machine offers 2")

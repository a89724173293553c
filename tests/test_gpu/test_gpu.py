"""The GPU path: `make test-gpu` on any machine with a CUDA GPU; skipped elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fbt_core.measure import training_memory
from fbt_core.methods import method_names
from tests.test_core.engine_runs import arguments, make_spec, metrics_of, network, write_images
from tests.test_core.methods_kit import PAIRS
from tests.test_core.test_data_device_cache import BATCHES, compare_with_loaders
from tests.test_gpu import checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU (make test-gpu runs where one is)"),
]
ROOT = Path(__file__).parents[2]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
EVERY = os.environ.get("FBT_GPU_ALL") == "1"
KINDS = ("float32", "tf32", "bfloat16", "float16") if EVERY else ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", PAIRS, ids="_to_".join)
@pytest.mark.parametrize("name", method_names())
def test_a_step_is_finite_and_in_float32_the_cpus(name, direction, kind):
    method = checks.prepare(name, PAIRS[direction], CPU)
    on_gpu = checks.twin(method).to(GPU)
    result = checks.train_step(on_gpu, checks.fixed_batch(GPU), kind, GPU)
    checks.check_finite_and_moving(result, f"{name} {direction} {kind}")
    if kind == "float32":
        expected = checks.train_step(method, checks.fixed_batch(CPU), kind, CPU)
        checks.check_like(result, expected, checks.FLOAT32_TOLERANCE, f"{name} {direction}")


@pytest.mark.parametrize("name", ["kd", "ofa", "fbt"])
def test_compiled_and_channels_last_steps_are_the_plain_one(name):
    pair, batch = PAIRS["cnn", "msa"], checks.fixed_batch(GPU)
    plain = checks.train_step(checks.prepare(name, pair, GPU), batch, "float32", GPU)
    last = checks.train_step(checks.prepare(name, pair, GPU, channels_last=True), batch, "float32", GPU)
    checks.check_like(last, plain, checks.FLOAT32_TOLERANCE, f"{name} channels_last")
    method = checks.prepare(name, pair, GPU)
    compiled = checks.train_step(method, batch, "float32", GPU, step=torch.compile(method))
    checks.check_like(compiled, plain, checks.FLOAT32_TOLERANCE, f"{name} compiled")


@pytest.mark.parametrize(("split", "pipeline"), BATCHES)
def test_images_that_stay_on_the_gpu_are_the_loaders_but_for_rounding(split, pipeline):
    compare_with_loaders(split, pipeline, GPU)


@pytest.mark.parametrize("name", method_names())
def test_a_step_waits_for_nothing(name):
    checks.check_no_synchronisation(checks.prepare(name, PAIRS["cnn", "msa"], GPU), checks.fixed_batch(GPU))


@pytest.mark.parametrize("name", training_memory.MEASURED)
def test_peak_memory_is_what_is_counted(name):
    checks.compare_peak(name, GPU, images=32)


def test_a_killed_training_resumes_and_ends_like_an_undisturbed_one(tmp_path):
    root, spec = write_images(tmp_path / "data"), make_spec(recipe__epochs=8)

    def command(runs):
        options = arguments(spec, tmp_path / runs, root, device=GPU.type, checkpoint_minutes=1e-9)
        return [sys.executable, "-m", "fbt_core.run", *options]

    subprocess.run(command("whole"), cwd=ROOT, check=True)
    checkpoint = tmp_path / "cut" / spec.id / "last.pt"
    with subprocess.Popen(command("cut"), cwd=ROOT) as training:
        while not checkpoint.exists() and training.poll() is None:
            time.sleep(0.01)
        training.send_signal(signal.SIGKILL)
    subprocess.run(command("cut"), cwd=ROOT, check=True)
    whole, cut = (metrics_of(tmp_path / runs, spec) for runs in ("whole", "cut"))
    assert [line["epoch"] for line in cut["history"]] == list(range(1, 9))
    for first, second in zip(whole["history"], cut["history"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=0.02)
    assert cut["execution"]["device"] == GPU.type
    assert cut["execution"]["gpus"] == (1 if GPU.type == "cuda" else 0)


def test_loaders_against_a_step():
    student = {**network(), "options": {}}  # a whole ResNet18
    checks.compare_loaders_and_step(student, GPU, size=224, batch=128, seconds=5.0)


def test_what_execution_settings_are_worth():
    student = {**network(), "options": {}}  # a whole ResNet18
    checks.compare_settings(student, GPU, size=224, batch=128, seconds=3.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_nccl(processes, tmp_path):
    if torch.cuda.device_count() < processes:
        pytest.skip(f"{processes} GPUs are needed")
    script = tmp_path / "sum.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))\n"
        "dist.init_process_group('nccl')\n"
        "numbers = torch.ones(4, device='cuda') * (dist.get_rank() + 1)\n"
        "dist.all_reduce(numbers)\n"
        "assert numbers.tolist() == [sum(range(1, dist.get_world_size() + 1))] * 4\n"
        "dist.destroy_process_group()\n"
    )
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    subprocess.run([*launcher, str(script)], check=True)


def test_two_processes_train_what_one_does(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("2 GPUs are needed")
    root, spec = write_images(tmp_path / "data"), make_spec()
    for runs, gpus in (("one", "1"), ("two", "2")):
        options = arguments(spec, tmp_path / runs, root, device="cuda")
        subprocess.run([sys.executable, "-m", "fbt_core.launch", gpus, *options], cwd=ROOT, check=True)
    single, double = (metrics_of(tmp_path / runs, spec) for runs in ("one", "two"))
    assert double["execution"]["world_size"] == 2
    for first, second in zip(single["history"], double["history"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_speed_of_products_is_measured(kind):
    """Not a limit, but the row that the bill's assumption is to be compared with."""
    dtype = checks.PRECISIONS[kind] or torch.float32
    with checks.precision("tf32" if kind == "tf32" else "float32", GPU):
        first, second = (torch.randn(4096, 4096, device=GPU, dtype=dtype) for _ in range(2))
        for _ in range(3):
            first @ second
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            first @ second
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / 10
    checks.ROWS.append((f"products in {kind}", f"{2 * 4096**3 / seconds / 1e12:.0f} TFLOP/s"))
    assert seconds > 0

"""`fbt check-machine`: what it says with and without GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fbt_paper.plan.memory import read_memory, training_memory_mb
from fbt_paper.plan.speeds import assumed_speeds
from fbt_paper.plan.targets import Flow
from fbt_paper.status import bench, machine
from fbt_paper.status.checks import Check, show_checks

ANSWER = {"torch": "2.9", "cuda": "13.0", "devices": [], "cores": 16}
DRIVER = "NVIDIA A100-SXM4-40GB, {memory}, 550.54, GPU-{number}\n"


@pytest.fixture(scope="module")
def paper() -> Flow:
    return Flow({"scale": "paper"})


@pytest.fixture(scope="module")
def smoke() -> Flow:
    return Flow({"scale": "smoke"})


def with_gpus(monkeypatch, folder: Path, memory: int, count: int = 2) -> None:
    """An nvidia-smi on the path that lists so many GPUs."""
    program, numbers = folder / "nvidia-smi", range(count)
    names = "".join(f"GPU {n}: NVIDIA A100-SXM4-40GB (UUID: GPU-{n})\n" for n in numbers)
    rows = "".join(DRIVER.format(memory=memory, number=n) for n in numbers)
    program.write_text(f"#!/bin/sh\nif [ $1 = -L ]; then cat <<E\n{names}E\nelse cat <<E\n{rows}E\nfi\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def check(flow: Flow, monkeypatch, rate: float = 250.0, devices: int = 0) -> dict[str, Check]:
    """All findings by their beginnings, with a measurement that is made up."""
    device = {"name": "A100", "memory_mb": 42_000, "tf32_bfloat16": True}

    def answer(flow, specs):
        loader = [{"rate": rate, "images": "made up"} for _ in specs]
        return {**ANSWER, "devices": [device] * devices, "loader": loader}

    monkeypatch.setattr(machine, "ask_engine", answer)
    return {c.what: c for c in machine.check_machine(flow, assumed_speeds("a100", 8))}


def find(checks: dict[str, Check], beginning: str) -> Check:
    (check,) = [check for what, check in checks.items() if what.startswith(beginning)]
    return check


def test_without_a_gpu_it_says_so_and_what_would_fit(paper, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = check(paper, monkeypatch)
    assert not find(checks, "no GPU").ok
    memory = find(checks, "memory of a GPU").what
    fitting = [int(part.split(" in ")[0].split()[-1]) for part in memory.split("; ")[1].split(",")]
    assert fitting == sorted(fitting) and fitting[0] < fitting[-1]


def test_a_scale_for_cpus_needs_no_gpu(smoke, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = check(smoke, monkeypatch)
    assert find(checks, "no GPU").ok
    assert show_checks([c for c in checks.values() if c.ok], "snakemake") == 0
    assert "everything is there: snakemake" in capsys.readouterr().out


def test_gpus_are_those_of_the_slots_with_memory_and_driver(paper, monkeypatch, tmp_path):
    with_gpus(monkeypatch, tmp_path, memory=40_960)
    checks = check(paper, monkeypatch, devices=2)
    assert find(checks, "GPU GPU-1").what.endswith("40,960 MB, driver 550.54")
    assert "sees 2 GPUs, 2 of them with TF32" in find(checks, "torch").what
    assert find(checks, "16 cores, 8 per GPU").ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert not [what for what in check(paper, monkeypatch, devices=1) if what.startswith("GPU GPU-0")]


def test_a_torch_that_sees_no_gpu_is_named(paper, monkeypatch, tmp_path):
    with_gpus(monkeypatch, tmp_path, memory=40_960)
    assert "sees none of 2 GPUs" in find(check(paper, monkeypatch, devices=0), "torch").what


def test_what_does_not_fit_into_the_smallest_gpu_is_named(paper, monkeypatch, tmp_path):
    with_gpus(monkeypatch, tmp_path, memory=8_192)
    small = find(check(paper, monkeypatch, devices=2), "memory of a GPU")
    assert not small.ok and "x kd on cifar100" in small.what and "gradient_accumulation" in small.hint


def test_loaders_that_are_slower_than_a_gpu_are_named(paper, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    slow, fast = (check(paper, monkeypatch, rate) for rate in (5.0, 5000.0))
    assert not find(slow, "loading photographs/plain").ok and find(fast, "loading photographs/plain").ok
    assert "made-up images" in find(fast, "loading photographs/plain").what


def test_memory_by_hand(paper):
    counts = {"kd": {"swin_t__resnet18": {"trainable": 10, "frozen": 100, "float32": 7, "half": 3}}}
    spec = next(
        s
        for s in paper.plan.runs.values()
        if (s.method.name, bench.pair_of(s), s.dataset.name) == ("kd", "swin_t__resnet18", "cifar100")
    )
    assert spec.recipe.optimizer.name == "sgd" and spec.recipe.ema_decay is None
    # Weights, gradients and momentum of 10, weights of 100 numbers; 5 images.
    assert training_memory_mb(spec, 5, counts) == pytest.approx((4 * (100 + 3 * 10) + 5 * 7) / 1e6)
    half = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"precision": "float16"})})
    assert training_memory_mb(half, 5, counts) == pytest.approx((4 * (100 + 3 * 10) + 5 * 3) / 1e6)
    assert training_memory_mb(spec, 5, {}) is None


def test_half_precision_and_logits_take_less_memory_than_what_is_counted_for_others():
    counts = read_memory()
    assert set(counts) == {"kd", "reviewkd", "fbt", "fcfd"}
    for pairs in counts.values():
        assert len(pairs) >= 21
        for pair, entry in pairs.items():
            assert 0 < entry["half"] < entry["float32"]
            assert entry["float32"] >= counts["kd"][pair]["float32"]

"""What the plan costs before it is paid: floating-point operations and GPU hours, from counted MACs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_core.spec import NetworkSpec, RunSpec
from fbt_paper.config.load import ConfigError, Problem

COSTS_FILE = Path(__file__).parent / "data" / "network_costs.json"
TRAINING_FILE = Path(__file__).parent / "data" / "training_costs.json"
PLAIN_METHOD = "kd"
"""What a method without a count of its own costs: it compares logits or pooled vectors only, as this one."""
BANK_METHOD, BANK_PRODUCTS = "crd", 4
"""The method whose products with its memory banks (width * training images each) come on top of that."""
FORWARD_PASSES_OF_A_STEP = 3  # one forward, and a backward that counts as two
DEFAULT_TFLOPS = 40.0
"""Sustained TFLOP/s per GPU that the estimate assumes; `fbt plan --tflops` takes your own."""


@dataclass(frozen=True)
class Bill:
    """The estimated training cost of some runs; `uncounted` are architectures without a MAC count."""

    pflops: float
    uncounted: tuple[str, ...]

    def gpu_hours(self, tflops: float) -> float:
        """Hours of one GPU that sustains so many TFLOP/s."""
        return self.pflops * 1e3 / tflops / 3600


def read_macs(path: Path = COSTS_FILE) -> dict[str, int]:
    """MACs of one image at 224 px by architecture; `python -m fbt_core.measure.cost networks` counted."""
    content = _read_counts(path, "fbt_core.measure.cost networks")
    return {name: int(entry["macs"]) for name, entry in content.items()}


def read_training_macs(path: Path = TRAINING_FILE) -> dict[str, dict[str, int]]:
    """MACs of one training image at 224 px by method and pair, from `fbt_core.measure.training_cost`."""
    return _read_counts(path, "fbt_core.measure.training_cost")


def _read_counts(path: Path, command: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        hint = f"make it with `python -m {command} --out FILE`"
        raise ConfigError([Problem(str(path), "", f"cannot be read ({error}); {hint}")]) from None
    # Keys with _ say how it was counted, and with which versions.
    return {name: entry for name, entry in content.items() if not name.startswith("_")}


def estimate(
    runs: Iterable[RunSpec], macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]] | None = None
) -> Bill:
    """The bill of full-size runs: their training images, and one pass of the student per test image.

    A training image costs what its method was counted to cost on the pair, extra modules included; where the
    pair was not counted, 3 forward passes of the student and 1 of the teacher.
    """
    total, uncounted = 0.0, dict[str, None]()
    for run in runs:
        for network in (run.student, run.teacher):
            if network and network.architecture not in macs:
                uncounted[network.architecture] = None
        total += _run_flops(run, macs, training or {})
    return Bill(total / 1e15, tuple(uncounted))


def _run_flops(run: RunSpec, macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]]) -> float:
    step = _counted_step(run, training)
    if step is None:
        step = FORWARD_PASSES_OF_A_STEP * _flops(run.student, run, macs) + _flops(run.teacher, run, macs)
    test = run.dataset.test_images * _flops(run.student, run, macs)
    return run.recipe.epochs * (run.dataset.train_images * step + test)


def _counted_step(run: RunSpec, training: Mapping[str, Mapping[str, int]]) -> float | None:
    """FLOPs of one training image, where the method (or one that costs the same) was counted on the pair."""
    if run.teacher is None:
        return None
    # A method without a count must not cost nothing: it is taken for the plain one.
    pairs = training.get(run.method.name, training.get(PLAIN_METHOD, {}))
    macs = pairs.get(f"{run.teacher.architecture}__{run.student.architecture}")
    # Counted at 224 px: a network's products grow with the pixels, those with a memory bank do not.
    return None if macs is None else 2.0 * (macs * (run.dataset.image_size / 224) ** 2 + _bank_macs(run))


def _bank_macs(run: RunSpec) -> int:
    """CRD multiplies each embedding with its two memory banks, forward and for the gradient."""
    width = run.method.parameters["width"] if run.method.name == BANK_METHOD else 0
    return BANK_PRODUCTS * int(str(width)) * run.dataset.train_images


def _flops(network: NetworkSpec | None, run: RunSpec, macs: Mapping[str, int]) -> float:
    if network is None:
        return 0.0
    return 2.0 * macs.get(network.architecture, 0) * (run.dataset.image_size / 224) ** 2

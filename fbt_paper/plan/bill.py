"""What the plan costs before it is paid: floating-point operations and GPU hours, from counted MACs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_core.spec import NetworkSpec, RunSpec
from fbt_paper.config.load import ConfigError, Problem
from fbt_paper.plan.speeds import Range, Speeds, kind_of_loading

COSTS_FILE = Path(__file__).parent / "data" / "network_costs.json"
TRAINING_FILE = Path(__file__).parent / "data" / "training_costs.json"
PLAIN_METHOD = "kd"
"""What a method without a count of its own costs: it compares logits or pooled vectors only, as this one."""
BANK_METHOD, BANK_PRODUCTS = "crd", 4
"""The method whose products with its memory banks (width * training images each) come on top of that."""
FORWARD_PASSES_OF_A_STEP = 3  # one forward, and a backward that counts as two


@dataclass(frozen=True)
class Cost:
    """What one run takes: FLOPs in a precision, and images of a kind that loaders make."""

    flops: float
    precision: str
    images: int
    loading: str

    def loading_hours(self, speeds: Speeds) -> float:
        """The least hours, however fast the GPU is: its cores must load every image of every epoch."""
        return self.images / (speeds.loader[self.loading] * speeds.cores) / 3600

    def gpu_hours(self, speeds: Speeds) -> Range:
        """Hours of one GPU, least and most; loading goes on beside the arithmetic."""
        slow, fast = speeds.tflops[self.precision]
        loading = self.loading_hours(speeds)
        return max(loading, self.flops / fast / 3.6e15), max(loading, self.flops / slow / 3.6e15)


@dataclass(frozen=True)
class Bill:
    """The estimated training cost of some runs; `uncounted` are architectures without a MAC count."""

    costs: tuple[Cost, ...]
    uncounted: tuple[str, ...]

    @property
    def pflops(self) -> float:
        """Floating-point operations in all, 1e15."""
        return sum(cost.flops for cost in self.costs) / 1e15

    def gpu_hours(self, speeds: Speeds) -> Range:
        """Hours of one GPU for all runs, least and most."""
        ranges = [cost.gpu_hours(speeds) for cost in self.costs]
        return sum(least for least, _ in ranges), sum(most for _, most in ranges)

    def loading_hours(self, speeds: Speeds) -> float:
        """Hours that the loaders alone take."""
        return sum(cost.loading_hours(speeds) for cost in self.costs)


def read_macs(path: Path = COSTS_FILE) -> dict[str, int]:
    """MACs of one image at 224 px by architecture; `python -m fbt_core.measure.cost networks` counted."""
    content = read_counts(path, "fbt_core.measure.cost networks")
    return {name: int(entry["macs"]) for name, entry in content.items()}


def read_parameters(path: Path = COSTS_FILE) -> dict[str, int]:
    """Parameters of the full-size networks by architecture, from the same file."""
    content = read_counts(path, "fbt_core.measure.cost networks")
    return {name: int(entry["parameters"]) for name, entry in content.items()}


def read_training_macs(path: Path = TRAINING_FILE) -> dict[str, dict[str, int]]:
    """MACs of one training image at 224 px by method and pair, from `fbt_core.measure.training_cost`."""
    return read_counts(path, "fbt_core.measure.training_cost")


def read_counts(path: Path, command: str) -> dict[str, Any]:
    """What a command has counted, without the keys that say how; a ConfigError names the command."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        hint = f"make it with `python -m {command} --out FILE`"
        raise ConfigError([Problem(str(path), "", f"cannot be read ({error}); {hint}")]) from None
    return {name: entry for name, entry in content.items() if not name.startswith("_")}


def estimate(
    runs: Iterable[RunSpec], macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]] | None = None
) -> Bill:
    """The bill of full-size runs: their training images, and one pass of the student per test image.

    A training image costs what its method was counted to cost on the pair, extra modules included; where the
    pair was not counted, 3 forward passes of the student and 1 of the teacher.
    """
    costs, uncounted = list[Cost](), dict[str, None]()
    for run in runs:
        for network in (run.student, run.teacher):
            if network and network.architecture not in macs:
                uncounted[network.architecture] = None
        costs.append(_cost_of(run, _run_flops(run, macs, training or {})))
    return Bill(tuple(costs), tuple(uncounted))


def _cost_of(run: RunSpec, flops: float) -> Cost:
    images = run.recipe.epochs * run.dataset.train_images + run.recipe.tests * run.dataset.test_images
    return Cost(flops, run.recipe.precision, images, kind_of_loading(run))


def in_packs(
    packs: Iterable[Sequence[RunSpec]], macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]]
) -> Bill:
    """The bill of runs that train in these packs (of one run: alone), without the uncounted.

    All runs of a pack pay one pass of their teacher per training image, and for loading each image once.
    """
    costs = []
    for pack in packs:
        flops = sum(_run_flops(run, macs, training) for run in pack)
        for run in [run for run in pack if run.teacher][1:]:
            flops -= run.recipe.epochs * run.dataset.train_images * _flops(run.teacher, run, macs)
        costs.append(_cost_of(pack[0], flops))
    return Bill(tuple(costs), ())


def _run_flops(run: RunSpec, macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]]) -> float:
    step = step_flops(run, macs, training)
    test = run.dataset.test_images * _flops(run.student, run, macs)
    return run.recipe.epochs * run.dataset.train_images * step + run.recipe.tests * test


def step_flops(run: RunSpec, macs: Mapping[str, int], training: Mapping[str, Mapping[str, int]]) -> float:
    """FLOPs of one training image."""
    step = _counted_step(run, training)
    if step is None:
        step = FORWARD_PASSES_OF_A_STEP * _flops(run.student, run, macs) + _flops(run.teacher, run, macs)
    return step


def _counted_step(run: RunSpec, training: Mapping[str, Mapping[str, int]]) -> float | None:
    """FLOPs of one training image, where the method (or one that costs the same) was counted on the pair."""
    if run.teacher is None:
        return None
    # A method without a count must not cost nothing: it is taken for the plain one.
    pairs = training.get(run.method.name, training.get(PLAIN_METHOD, {}))
    macs = pairs.get(f"{run.teacher.architecture}__{run.student.architecture}")
    if macs is None:
        return None
    # Counted at 224 px: a network's products grow with the pixels, those with a memory bank do not.
    products = macs * (run.dataset.image_size / 224) ** 2
    # CRD multiplies each embedding with its two memory banks, forward and for the gradient.
    if run.method.name == BANK_METHOD:
        products += BANK_PRODUCTS * int(str(run.method.parameters["width"])) * run.dataset.train_images
    return 2.0 * products


def _flops(network: NetworkSpec | None, run: RunSpec, macs: Mapping[str, int]) -> float:
    if network is None:
        return 0.0
    return 2.0 * macs.get(network.architecture, 0) * (run.dataset.image_size / 224) ** 2

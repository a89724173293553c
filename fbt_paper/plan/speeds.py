"""How fast GPUs and loaders are taken to be: assumed by kind of GPU, or measured here by `fbt bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fbt_core.errors import UserError
from fbt_core.run_files import read_json
from fbt_core.spec import RunSpec

SPEEDS_FILE = Path(__file__).parent / "data" / "speeds.json"
BENCH_FILE = "bench.json"
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
Range = tuple[float, float]


@dataclass(frozen=True)
class Speeds:
    """TFLOP/s that a GPU sustains by precision (least, most), and images a second that a core loads by kind.

    `cores` are those of one GPU's loaders; `gpu` and `loaders` say where the numbers are from.
    """

    tflops: Mapping[str, Range]
    loader: Mapping[str, float]
    cores: float
    gpu: str
    loaders: str

    def describe(self) -> str:
        """The assumptions, as they stand under a bill."""
        speeds = ", ".join(f"{name} {_range(self.tflops[name])}" for name in PRECISIONS)
        rates = ", ".join(f"{kind} {rate:,.0f}" for kind, rate in self.loader.items())
        return (
            f"TFLOP/s per GPU ({self.gpu}): {speeds}.\n"
            f"Images a second per core ({self.loaders}), {self.cores:g} cores per GPU: {rates}.\n"
            "The slower of the two, arithmetic or loading, sets a run's hours."
        )


def _range(speeds: Range) -> str:
    low, high = speeds
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def assumed_speeds(gpu: str, cores: float, tflops: float | None = None) -> Speeds:
    """The speeds of a kind of GPU; `tflops`, if given, holds for every precision. Raises UserError."""
    content: dict[str, Any] = json.loads(SPEEDS_FILE.read_text())
    if gpu not in content["gpus"]:
        raise UserError(f"unknown GPU '{gpu}'", where="--gpu", given=gpu, choices=content["gpus"])
    peaks, sustained = content["gpus"][gpu], content["sustained"]
    speeds, what = dict[str, Range](), f"{gpu}, assumed shares of its peak; --gpu names another"
    for name in PRECISIONS:
        kind = "half" if name.endswith("16") else name
        low, high = sustained[kind]
        speeds[name] = (low * peaks[kind], high * peaks[kind])
    if tflops is not None:
        speeds, what = dict.fromkeys(PRECISIONS, (tflops, tflops)), "as given by --tflops"
    return Speeds(speeds, content["loader"], cores, what, "benchmarks/README.md")


def with_measured(speeds: Speeds, bench: Mapping[str, Any]) -> Speeds:
    """The speeds with what `fbt bench` measured instead; a CPU's steps say nothing of a GPU."""
    loader = {**speeds.loader, **{kind: float(rate) for kind, rate in bench.get("loader", {}).items()}}
    speeds = replace(speeds, loader=loader, loaders=f"measured on {bench.get('machine')} where not assumed")
    measured: dict[str, list[float]] = {}
    for entry in bench.get("steps", {}).values():
        if entry["device"] == "cuda" and entry.get("tflops"):
            measured.setdefault(entry["precision"], []).append(entry["tflops"])
    if not measured:
        return speeds
    ranges = {name: (min(values), max(values)) for name, values in measured.items()}
    what = f"{', '.join(ranges)} measured on {bench.get('gpu')}; others: {speeds.gpu}"
    return replace(speeds, tflops={**speeds.tflops, **ranges}, gpu=what)


def speeds_for(results: Path, gpu: str, cores: float, tflops: float | None) -> Speeds:
    """What `fbt plan` reckons with: measured in results/<scale>/bench.json, else assumed."""
    assumed, bench = assumed_speeds(gpu, cores, tflops), read_json(results / BENCH_FILE)
    return with_measured(assumed, bench) if bench and tflops is None else assumed


def kind_of_loading(run: RunSpec) -> str:
    """What a core's speed depends on: how large the images are, and whether RandAugment changes them."""
    size = "photographs" if run.dataset.loader == "image_folder" else "small"
    return f"{size}/{'rand_augment' if run.recipe.augmentation.rand_augment else 'plain'}"

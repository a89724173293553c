"""`fbt check-machine`: what this machine offers a plan, and what it still misses. Useful without a GPU, too.

Nothing is trained. GPUs are those that trainings get slots of; torch is asked in a process of its own, which
also measures for a few seconds how fast a core loads images.
"""

from __future__ import annotations

import importlib
import os
import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_core.errors import UserError
from fbt_core.spec import RunSpec
from fbt_paper.plan.bill import read_macs, read_parameters, read_training_macs, step_flops
from fbt_paper.plan.memory import read_memory, training_memory_mb
from fbt_paper.plan.speeds import Speeds, kind_of_loading
from fbt_paper.plan.targets import Flow
from fbt_paper.status.bench import FROM_DATA, ask_engine
from fbt_paper.status.checks import Check
from fbt_paper.status.cluster import check_data, check_weights

USABLE = 0.92
"""Share of a GPU's memory that counted tensors may fill; CUDA and pieces too small to use take the rest."""
COMMON_GB = (8, 11, 16, 24, 32, 40, 48, 80)
WEIGHTS_KEPT = 8
"""Copies of a student's weights on the disk while it trains: two checkpoints with all they hold."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    memory_mb: int
    driver: str
    identity: str


def check_machine(flow: Flow, speeds: Speeds) -> list[Check]:
    """Look at GPUs, torch, cores, main memory, disk, loaders, memory of each run, data and teachers."""
    gpus, checks = find_gpus(needed=not flow.execution.allow_cpu)
    kinds = {kind_of_loading(spec): spec for spec in flow.plan.runs.values()}
    facts = ask_engine(flow, kinds.values())
    checks += [check_torch(facts, gpus), *check_host(flow, max(1, len(gpus)), facts["cores"])]
    cores = facts["cores"] / max(1, len(gpus))
    for kind, loader in zip(kinds, facts["loader"], strict=True):
        checks.append(check_loader(flow, kind, loader, cores, speeds))
    checks += check_memory(flow, gpus)
    return [*checks, *check_data(flow), *check_weights(flow)]


def find_gpus(needed: bool) -> tuple[list[Gpu], list[Check]]:
    """The GPUs that trainings may use, as the slots find them, each with memory and driver."""
    try:
        slots = importlib.import_module("gpu_slots")
    except ImportError:
        hint = "pip install ./plugin (it comes with this repository)"
        raise UserError("the package that shares GPUs is missing", hint=hint) from None
    try:
        identities = slots.devices(os.environ)
    except slots.SlotError as error:
        return [], [Check(False, f"GPUs: {error}", "correct CUDA_VISIBLE_DEVICES")]
    described = {gpu.identity: gpu for gpu in ask_driver()}
    gpus = [described[identity] for identity in identities if identity in described]
    if not identities:
        hint = "without one only scales for CPUs train here, such as smoke; `nvidia-smi -L` must list GPUs"
        return [], [Check(not needed, "no GPU that trainings could use", hint)]
    checks = [Check(True, f"GPU {g.identity}: {g.name}, {g.memory_mb:,} MB, driver {g.driver}") for g in gpus]
    others = len(identities) - len(gpus)
    if others:
        checks.append(Check(True, f"{others} slots that nvidia-smi does not describe (MIG)"))
    return gpus, checks


def ask_driver() -> list[Gpu]:
    """Every GPU of the machine by nvidia-smi; none without it."""
    query = "--query-gpu=name,memory.total,driver_version,uuid"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines()]
    # A MIG device's parent says [N/A] for what its parts have.
    return [Gpu(row[0], int(row[1]), row[2], row[3]) for row in rows if len(row) == 4 and row[1].isdigit()]


def check_torch(facts: dict[str, Any], gpus: Sequence[Gpu]) -> Check:
    """Whether torch sees the GPUs, and which precisions run on them."""
    devices, build = facts["devices"], f"torch {facts['torch']}, CUDA {facts['cuda'] or 'not built in'}"
    if gpus and not devices:
        hint = "the driver is older than torch's CUDA, or torch is a CPU build: pytorch.org says which fits"
        return Check(False, f"{build}: torch sees none of {len(gpus)} GPUs", hint)
    able = sum(device["tf32_bfloat16"] for device in devices)
    text = f"{build}: torch sees {len(devices)} GPUs"
    return Check(True, f"{text}, {able} of them with TF32 and bfloat16" if devices else text)


def check_host(flow: Flow, gpus: int, cores: int) -> list[Check]:
    """Cores per GPU, main memory, and the disk that results go to."""
    amounts = [flow.resources_of(run) for run in flow.plan.runs]
    workers, each = flow.execution.workers, cores // gpus
    share = max(amount["mem_mb"] / max(1, amount["gpu"]) for amount in amounts) / 1e3
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    checks = [
        Check(
            each >= workers,
            f"{cores} cores, {each} per GPU; `workers` asks for {workers} loader processes per GPU",
            "lower execution.workers in config.yaml, or use fewer GPUs (CUDA_VISIBLE_DEVICES)",
        ),
        Check(
            memory >= share * gpus,
            f"{memory:,.0f} GB of main memory; trainings on all GPUs ask for {share * gpus:,.0f} GB",
            "lower `memory` in the profile's resources.yaml, or use fewer GPUs",
        ),
    ]
    return [*checks, check_disk(flow, gpus)]


def check_disk(flow: Flow, at_a_time: int) -> Check:
    """Free space against weights of all students, and checkpoints of those that train at a time."""
    folder = next(
        path for path in (Path(flow.results), *Path(flow.results).absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(folder).free / 1e9
    if not flow.plan.size.is_full_size:
        return Check(free > 1, f"{free:,.0f} GB free for {flow.results}", "1 GB is needed")
    counted = read_parameters()
    # An architecture that was not counted takes nothing.
    sizes = sorted(4 * counted.get(spec.student.architecture, 0) / 1e9 for spec in flow.plan.runs.values())
    needed = sum(sizes) + WEIGHTS_KEPT * sum(sizes[-at_a_time:])
    what = f"{free:,.0f} GB free for {flow.results}; "
    what += f"weights and checkpoints of {len(sizes)} runs: {needed:,.0f} GB"
    return Check(free >= needed, what, "make room, or make `results` a link to a larger disk")


def check_loader(flow: Flow, kind: str, measured: dict[str, Any], cores: float, speeds: Speeds) -> Check:
    """Images a second that one GPU's cores load, and that it takes at the assumed speeds."""
    had = measured["rate"] * cores
    source = "" if measured["images"] == FROM_DATA else ", made-up images"
    text = f"loading {kind}: {measured['rate']:,.0f} images/s per core{source}, {had:,.0f} per GPU"
    if not flow.plan.size.is_full_size:
        return Check(True, text)
    runs = [spec for spec in flow.plan.runs.values() if kind_of_loading(spec) == kind]
    low, high = (statistics.median(taken(spec, speeds, end) for spec in runs) for end in (0, 1))
    text += f"; a GPU takes {low:,.0f} to {high:,.0f} ({speeds.gpu.split(',')[0]}, median of the runs)"
    return Check(had >= low, text, "more cores per GPU, or fewer GPUs at a time: loaders set the speed here")


def taken(spec: RunSpec, speeds: Speeds, end: int) -> float:
    """Images a second that a GPU takes of a run, at the slow end (0) or the fast one (1)."""
    flops = step_flops(spec, read_macs(), read_training_macs())
    return speeds.tflops[spec.recipe.precision][end] * 1e12 / flops


def check_memory(flow: Flow, gpus: Sequence[Gpu]) -> list[Check]:
    """Which trainings fit into a GPU's memory with the images that the profile gives each GPU."""
    if not flow.plan.size.is_full_size:
        return [Check(True, "networks are tiny: any GPU's memory will do")]
    counts, needs = read_memory(), dict[str, float]()
    for run, spec in flow.plan.runs.items():
        share = images_per_pass(flow, spec)
        needed = training_memory_mb(spec, share, counts)
        if needed is not None:
            needs[run] = needed
    counted = f"{len(needs)} of {len(flow.plan.runs)} trainings counted"
    if not gpus:
        fitting = [f"{sum(fits(need, 1000 * gb) for need in needs.values())} in {gb} GB" for gb in COMMON_GB]
        return [Check(True, f"memory of a GPU: {counted}; of these fit {', '.join(fitting)}")]
    smallest = min(gpu.memory_mb for gpu in gpus) * 1.048576
    large = {run: need for run, need in needs.items() if not fits(need, smallest)}
    hint = "more `gpus` for them in the profile's resources.yaml, or gradient_accumulation in config.yaml"
    if not large:
        return [
            Check(True, f"memory of a GPU: {counted}, all fit (largest {max(needs.values()) / 1e3:,.1f} GB)")
        ]
    return [
        Check(False, f"memory of a GPU: {counted}, {len(large)} do not fit: {largest(flow, large)}", hint)
    ]


def images_per_pass(flow: Flow, spec: RunSpec) -> int:
    """Images of the batch that one GPU holds at a time."""
    gpus = max(1, flow.resources.of(spec)["gpu"])
    return -(-spec.recipe.batch_size // (gpus * flow.execution.gradient_accumulation))


def fits(needed_mb: float, memory_mb: float) -> bool:
    """Whether counted tensors fit into a GPU of so many MB."""
    return needed_mb <= USABLE * memory_mb


def largest(flow: Flow, needs: dict[str, float], shown: int = 4) -> str:
    """The methods and data sets of runs that do not fit, most first, and the largest need."""
    kinds = Counter(f"{flow.spec(run).method.name} on {flow.spec(run).dataset.name}" for run in needs)
    names: Iterable[str] = (f"{count} x {kind}" for kind, count in kinds.most_common(shown))
    more = f" and {len(kinds) - shown} kinds more" if len(kinds) > shown else ""
    return f"{', '.join(names)}{more}; up to {max(needs.values()) / 1e3:,.1f} GB"

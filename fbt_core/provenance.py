"""Where a number comes from: code version, package versions, device, job."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pydantic", "fbt-repro")
JOB_VARIABLES = {
    "job_id": ("SNAKEMAKE_SUBMITIT_JOB_ID", str),
    "restarts": ("SNAKEMAKE_SUBMITIT_RESTARTS", int),
    "queue_wait_s": ("SNAKEMAKE_SUBMITIT_QUEUE_WAIT_S", float),
    "gpus_reserved": ("SNAKEMAKE_SUBMITIT_GPUS", int),
}


def now() -> str:
    """The time in UTC, ISO format, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a number depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        # A checkout that is not installed has no version of its own.
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def git_state() -> dict[str, Any]:
    """The code's commit and whether it had uncommitted changes; None outside a clone."""
    sha = _git("rev-parse", "HEAD")
    # Tracked files only: what a run writes is no change of the code.
    changes = _git("status", "--porcelain", "--untracked-files=no") if sha else None
    return {"git_sha": sha or None, "git_dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        # A time limit: git on a network disk may hang, and a run must not.
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def job() -> dict[str, Any]:
    """What the cluster's job says of itself in the environment; None where it says nothing."""
    return {name: _read(variable, kind) for name, (variable, kind) in JOB_VARIABLES.items()}


def _read(variable: str, kind: type) -> Any:
    # Outside a job, and for a variable that holds nonsense, nothing is known: no reason to stop.
    try:
        return kind(os.environ[variable])
    except (KeyError, ValueError):
        return None


def kernels(device: torch.device) -> dict[str, bool | None]:
    """What torch may do to a GPU's arithmetic: TF32 in products and convolutions, cuDNN's choice by trial."""
    on_gpu = device.type == "cuda"
    return {
        "tf32_products": _allows_tf32(torch.backends.cuda.matmul) if on_gpu else None,
        "tf32_convolutions": _allows_tf32(torch.backends.cudnn) if on_gpu else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if on_gpu else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _allows_tf32(backend: Any) -> bool | None:
    """Whether TF32 is on; None if torch does not say, as when another library set it by its newer names."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def compile_fallbacks() -> int | None:
    """How often torch.compile left a part of a step uncompiled in this process; None if it was not used."""
    # Not imported for this: asking would load torch's compiler.
    if "torch._dynamo.utils" not in sys.modules:
        return None
    counters = torch._dynamo.utils.counters
    if not counters.get("stats", {}).get("unique_graphs"):
        return None
    return sum(counters["graph_break"].values()) + sum(counters["unimplemented"].values())


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use; macOS does not say which, so all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), None)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB (2^20 bytes): the GPU's, or this process's resident set."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)

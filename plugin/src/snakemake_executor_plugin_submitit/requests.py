"""What a rule asks of the cluster: Snakemake's resources, checked and turned into what sbatch understands."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RESOURCES", "Request", "RequestError", "nearest", "read_request"]

RESOURCES: dict[str, str] = {
    "runtime": "time limit of one start, in minutes (Snakemake also takes '2h', '1d')",
    "mem_mb": "memory per node, in MB",
    "mem_mb_per_cpu": "memory per CPU, in MB (instead of mem_mb)",
    "cpus": "CPUs per task (default: the rule's threads)",
    "cpus_per_task": "the same as cpus",
    "gpu": "GPUs of the job, over all its nodes",
    "gpus": "the same as gpu",
    "gpu_model": "type of the GPUs, as in gres.conf",
    "nodes": "number of nodes (default 1)",
    "tasks": "number of tasks (default: one per node)",
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "quality of service",
    "constraint": "features the nodes must have",
    "slurm_extra": "further options of sbatch, e.g. '--exclude=n3 --reservation=x'",
}
"""Every resource that reaches Slurm, and what it means."""

SNAKEMAKES_OWN = frozenset(
    {"mem", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "runtime_min", "runtime_minutes", "attempt"}
)
OWNED_OPTIONS = {
    "time": "runtime",
    "mem": "mem_mb",
    "mem-per-cpu": "mem_mb_per_cpu",
    "cpus-per-task": "cpus",
    "gpus": "gpu",
    "gpus-per-node": "gpu",
    "gpus-per-task": "gpu",
    "gpus-per-socket": "gpu",
    "nodes": "nodes",
    "ntasks": "tasks",
    "ntasks-per-node": "tasks",
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "qos",
    "constraint": "constraint",
}
PLUGINS_OPTIONS = frozenset(
    {
        "array",
        "output",
        "error",
        "open-mode",
        "signal",
        "job-name",
        "comment",
        "requeue",
        "no-requeue",
        "chdir",
        "wrap",
    }
)
ALIASES = {"cpus_per_task": "cpus", "gpus": "gpu"}


IGNORE_SIGNALS = Path(__file__).with_name("ignore_signals.sh")
"""What srun starts on every node: the signals of a time limit must not end what starts the programs there."""


class RequestError(ValueError):
    """A rule's resources make no sense; `problems` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Request:
    """What one job asks for; jobs with equal requests go out as one array."""

    runtime: int | None = None
    mem_mb: int | None = None
    mem_mb_per_cpu: int | None = None
    cpus: int = 1
    gpu: int = 0
    gpu_model: str | None = None
    nodes: int = 1
    tasks: int = 1
    slurm_partition: str | None = None
    slurm_account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    slurm_extra: tuple[tuple[str, str | bool], ...] = field(default=())

    @property
    def gpus_per_node(self) -> int:
        """GPUs that each node must have free."""
        return self.gpu // self.nodes

    @property
    def launcher(self) -> str:
        """Command that starts one process on every node of the job; empty for a job on one node."""
        if self.nodes == 1 and self.tasks == 1:
            return ""
        shape = f"--nodes={self.nodes} --ntasks={self.tasks} --cpus-per-task={self.cpus}"
        return f"srun --overlap --mem=0 {shape} /bin/sh {IGNORE_SIGNALS}"

    def parameters(self) -> dict[str, Any]:
        """The request in submitit's words; None means the cluster's default."""
        gpus: int | str = self.gpus_per_node
        if self.gpu_model and gpus:
            gpus = f"{self.gpu_model}:{gpus}"
        chosen = {
            "time": self.runtime,
            "mem": None if self.mem_mb is None else f"{self.mem_mb}M",
            "mem_per_cpu": None if self.mem_mb_per_cpu is None else f"{self.mem_mb_per_cpu}M",
            "cpus_per_task": self.cpus,
            "gpus_per_node": gpus or None,
            "nodes": self.nodes,
            "partition": self.slurm_partition,
            "account": self.slurm_account,
            "qos": self.qos,
            "constraint": self.constraint,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def options(self) -> dict[str, str | bool]:
        """Options of sbatch that submitit has no word for."""
        tasks: dict[str, str | bool] = {"ntasks": str(self.tasks)} if self.tasks > 1 else {}
        return {**tasks, **dict(self.slurm_extra)}


def read_request(
    resources: Mapping[str, Any], threads: int, where: str, declared: Iterable[str] = ()
) -> Request:
    """Check the resources of one job and return its request.

    `declared` are further names that the workflow uses itself (`--resources`); `where` begins each error.
    Raises RequestError with every problem at once.
    """
    problems = unknown_names(resources, declared)
    asked = {
        name: value for name, value in resources.items() if name in RESOURCES and value not in (None, "")
    }
    asked = merge_aliases(asked, problems)
    numbers = read_numbers(asked, problems)
    texts = {name: str(asked[name]) for name in TEXTS if name in asked}
    extra = read_extra(str(asked.get("slurm_extra", "")), problems)
    numbers.setdefault("cpus", max(1, threads))
    numbers.setdefault("tasks", numbers.get("nodes", 1))
    problems += contradictions(numbers, texts, threads)
    if problems:
        raise RequestError([f"{where}: {problem}" for problem in problems])
    return Request(**numbers, **texts, slurm_extra=tuple(sorted(extra.items())))  # type: ignore[arg-type]


NUMBERS = {"runtime": 1, "mem_mb": 1, "mem_mb_per_cpu": 1, "cpus": 1, "gpu": 0, "nodes": 1, "tasks": 1}
"""Resources that are whole numbers, and the smallest that makes sense."""

TEXTS = ("gpu_model", "slurm_partition", "slurm_account", "qos", "constraint")


def unknown_names(resources: Mapping[str, Any], declared: Iterable[str]) -> list[str]:
    """Name resources that nothing would read, with the nearest that something would."""
    allowed = {*RESOURCES, *SNAKEMAKES_OWN, *declared}
    return [
        f"resource {name!r} is unknown{nearest(name, RESOURCES)}; valid are {', '.join(sorted(RESOURCES))}; "
        f"a resource of the workflow's own must have a limit, e.g. --resources {name}=8"
        for name in resources
        if name not in allowed and not name.startswith("_")
    ]


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which valid choice was probably meant, or nothing."""
    match = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def merge_aliases(asked: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Use one name for each thing; the same thing twice with different values is a problem."""
    merged: dict[str, Any] = {}
    for name, value in asked.items():
        target = ALIASES.get(name, name)
        if target in merged and merged[target] != value:
            problems.append(f"{name}={value} contradicts {target}={merged[target]}: they mean the same")
        merged[target] = value
    return merged


def read_numbers(asked: Mapping[str, Any], problems: list[str]) -> dict[str, int]:
    """Read whole numbers and say which are none or too small."""
    numbers: dict[str, int] = {}
    for name, least in NUMBERS.items():
        if name not in asked:
            continue
        try:
            value = float(asked[name])
        except (TypeError, ValueError):
            problems.append(f"{name}={asked[name]!r} is not a number ({RESOURCES[name]})")
            continue
        if value < least or not math.isfinite(value):
            problems.append(f"{name}={asked[name]} must be {least} or more ({RESOURCES[name]})")
        numbers[name] = math.ceil(value) if math.isfinite(value) else least
    return numbers


def read_extra(text: str, problems: list[str]) -> dict[str, str | bool]:
    """Read `slurm_extra` into option and value, refusing what the plugin or another resource sets."""
    options: dict[str, str | bool] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        problems.append(f"slurm_extra={text!r} cannot be read: {error}")
        return options
    for word in words:
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            problems.append(f"slurm_extra: write {word!r} as --option or --option=value")
        elif name == "gres" and "gpu" in value:
            problems.append("slurm_extra sets --gres=gpu: use the resource 'gpu' for it")
        elif name in OWNED_OPTIONS:
            problems.append(f"slurm_extra sets --{name}: use the resource {OWNED_OPTIONS[name]!r} for it")
        elif name in PLUGINS_OPTIONS:
            problems.append(f"slurm_extra sets --{name}, which the plugin needs for itself")
        else:
            options[name] = value if has_value else True
    return options


def contradictions(numbers: Mapping[str, int], texts: Mapping[str, str], threads: int) -> list[str]:
    """Say which of the numbers cannot hold together."""
    nodes, gpu = numbers.get("nodes", 1), numbers.get("gpu", 0)
    checks = {
        "mem_mb and mem_mb_per_cpu exclude each other: keep one": {"mem_mb", "mem_mb_per_cpu"}
        <= set(numbers),
        f"cpus={numbers['cpus']} is less than the rule's threads={threads}": numbers["cpus"] < threads,
        f"tasks={numbers['tasks']} is less than nodes={nodes}": numbers["tasks"] < nodes,
        f"gpu={gpu} cannot be dealt evenly to nodes={nodes}": nodes > 0 and gpu % nodes != 0,
        "gpu_model is set but gpu is not: how many?": "gpu_model" in texts and gpu == 0,
    }
    return [problem for problem, wrong in checks.items() if wrong]

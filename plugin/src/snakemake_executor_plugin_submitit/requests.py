"""What a rule asks of the cluster: Snakemake's resources, checked and turned into what sbatch understands."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = [
    "GPU_OPTIONS",
    "IGNORE_SIGNALS",
    "RESOURCES",
    "Request",
    "RequestError",
    "ignored_resources",
    "nearest",
    "read_request",
]

RESOURCES: dict[str, str] = {
    "runtime": "time limit of one start, in minutes (Snakemake also takes '2h', '1d')",
    "mem_mb": "memory per node, in MB (0: all of a node)",
    "mem_mb_per_cpu": "memory per CPU, in MB (instead of mem_mb)",
    "cpus": "CPUs per task (default: the rule's threads)",
    "cpus_per_task": "the same as cpus",
    "cpus_per_gpu": "CPUs per GPU (instead of cpus)",
    "gpu": "GPUs of the job, over all its nodes",
    "gpus": "the same as gpu",
    "gpu_model": "type of the GPUs, as in gres.conf",
    "gres": "GPUs per node and other generic resources in Slurm's notation, e.g. 'gpu:a100:2'",
    "nodes": "number of nodes (default 1)",
    "tasks": "number of tasks (default: one per node)",
    "tasks_per_node": "tasks on each node (instead of tasks)",
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "quality of service",
    "constraint": "features the nodes must have",
    "reservation": "reservation",
    "signal_seconds": "seconds before the time limit at which the job is asked to save, if it needs more "
    "than --submitit-signal-seconds",
    "slurm_extra": "further options of sbatch, e.g. '--exclude=n3 --exclusive'",
}
"""Every resource that reaches Slurm, and what it means."""

# Snakemake sets these for its own use; they are no misspelt names of ours.
SNAKEMAKES_OWN = frozenset(
    {"mem", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "runtime_min", "runtime_minutes", "attempt"}
)
OTHER_EXECUTORS = {
    "cluster": "jobs go to the cluster of this login node",
    "clusters": "jobs go to the cluster of this login node",
    "slurm_cluster": "jobs go to the cluster of this login node",
    "mpi": "the command starts its processes itself, with $SNAKEMAKE_SUBMITIT_LAUNCHER",
    "tasks_per_gpu": "say tasks",
    "ntasks_per_gpu": "say tasks",
    "requeue": "jobs are always requeued",
    "slurm_requeue": "jobs are always requeued",
    "slurm_logdir": "logs lie in .snakemake/submitit/jobs",
    "machine_type": "it belongs to another executor",
}
"""Resources that other executors read, with what holds here instead."""
OTHER_PREFIXES = ("lsf_", "pbs_", "sge_", "htcondor_", "flux_", "googlebatch_", "kubernetes_", "k8s_", "aws_")

GPU_OPTIONS = ("gpus-per-node", "gres", "gpus-per-task")
"""The ways in which clusters count GPUs, the usual one first."""

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
# A second value of these would hide the job from the plugin: its logs, its mark, its signal, its array.
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
    reservation: str | None = None
    signal_seconds: int = 0
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
        # Slurm gives the step of the job itself all CPUs and memory: --overlap and
        # --mem=0 let a second one run.
        shape = f"--nodes={self.nodes} --ntasks={self.tasks} --cpus-per-task={self.cpus}"
        return f"srun --overlap --mem=0 {shape} /bin/sh {IGNORE_SIGNALS}"

    def parameters(self) -> dict[str, Any]:
        """The request in submitit's words, but for GPUs; None means the cluster's default."""
        chosen = {
            "time": self.runtime,
            "mem": None if self.mem_mb is None else f"{self.mem_mb}M",
            "mem_per_cpu": None if self.mem_mb_per_cpu is None else f"{self.mem_mb_per_cpu}M",
            "cpus_per_task": self.cpus,
            "nodes": self.nodes,
            "partition": self.slurm_partition,
            "account": self.slurm_account,
            "qos": self.qos,
            "constraint": self.constraint,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def options(self, gpu_option: str = "gpus-per-node") -> dict[str, str | bool]:
        """Options of sbatch that submitit has no word for; GPUs in the way that the cluster counts them."""
        options: dict[str, str | bool] = dict(self.slurm_extra)
        if self.tasks > 1:
            options["ntasks"] = str(self.tasks)
        if self.reservation:
            options.setdefault("reservation", self.reservation)
        if not self.gpu:
            return options
        model = f"{self.gpu_model}:" if self.gpu_model else ""
        if gpu_option == "gres":
            # --gres stands for all kinds at once: a second option would replace the first.
            others = [str(options["gres"])] if "gres" in options else []
            options["gres"] = ",".join([f"gpu:{model}{self.gpus_per_node}", *others])
        elif gpu_option == "gpus-per-task":
            options["ntasks"] = str(self.tasks)  # without it Slurm does not know how often
            options[gpu_option] = f"{model}{self.gpu // self.tasks}"
        else:
            options[gpu_option] = f"{model}{self.gpus_per_node}"
        return options


def read_request(
    resources: Mapping[str, Any],
    threads: int,
    where: str,
    declared: Iterable[str] = (),
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    gpu_option: str = "auto",
) -> Request:
    """Check the resources of one job and return its request.

    `declared` are further names that the workflow uses itself (`--resources`); `where` begins each error;
    `defaults` hold where the resources are silent. Raises RequestError with every problem at once.
    """
    # What the rule says goes before what the shell or the site says by default.
    problems = misspelt_names(resources, declared)
    asked = {name: value for name, value in resources.items() if name in RESOURCES and is_set(value)}
    extra = read_extra(str(asked.pop("slurm_extra", "")), problems, gpu_option)
    extra = {**read_extra(str(defaults.get("slurm_extra", "")), []), **extra}
    asked = {**{name: value for name, value in defaults.items() if name != "slurm_extra"}, **asked}
    # On such a cluster users write GPUs in slurm_extra; they are counted like those of the resource.
    if gpu_option == "gres" and "gres" in extra:
        asked.setdefault("gres", extra.pop("gres"))

    # Two names for one thing become one, and Slurm's notation of GPUs becomes a number and a type.
    asked = merge_aliases(asked, problems)
    read_gres(asked, extra, problems)
    numbers = read_numbers(asked, problems)
    texts = {name: str(asked[name]) for name in TEXTS if name in asked}
    derive_numbers(numbers, threads)

    # All problems at once, not one per run.
    problems += contradictions(numbers, texts, threads)
    if gpu_option == "gpus-per-task" and numbers.get("gpu", 0) % max(1, numbers["tasks"]):
        problems.append(f"gpu={numbers['gpu']} cannot be shared evenly by tasks={numbers['tasks']}")
    if problems:
        raise RequestError([f"{where}: {problem}" for problem in problems])
    return Request(**numbers, **texts, slurm_extra=tuple(sorted(extra.items())))  # type: ignore[arg-type]


NUMBERS = {
    "runtime": 1,
    "mem_mb": 0,
    "mem_mb_per_cpu": 1,
    "cpus": 1,
    "cpus_per_gpu": 1,
    "gpu": 0,
    "nodes": 1,
    "tasks": 1,
    "tasks_per_node": 1,
    "signal_seconds": 0,
}
"""Resources that are whole numbers, and the smallest that makes sense."""

TEXTS = ("gpu_model", "slurm_partition", "slurm_account", "qos", "constraint", "reservation")


def is_set(value: Any) -> bool:
    """Whether a resource has a value."""
    return value is not None and value != ""


def misspelt_names(resources: Mapping[str, Any], declared: Iterable[str]) -> list[str]:
    """Name resources that nothing reads and that look like a misspelt name of one that would be read."""
    # A misspelt `gpus` would be passed over, and the job would wait for hours to train on a CPU.
    return [
        f"resource {name!r} is unknown{nearest(name, RESOURCES)}; valid are {', '.join(sorted(RESOURCES))}; "
        f"a resource of the workflow's own that looks so must have a limit, e.g. --resources {name}=8"
        for name in unread_names(resources, declared)
        if nearest(name, RESOURCES) and not of_another_executor(name)
    ]


def ignored_resources(resources: Mapping[str, Any], declared: Iterable[str]) -> dict[str, str]:
    """Resources that are passed over, each with the reason or what holds instead."""
    ignored = {}
    for name in unread_names(resources, declared):
        if of_another_executor(name):
            ignored[name] = OTHER_EXECUTORS.get(name, "it belongs to another executor")
        elif not nearest(name, RESOURCES):
            ignored[name] = f"it has no limit (--resources {name}=N)"
    return ignored


def unread_names(resources: Mapping[str, Any], declared: Iterable[str]) -> list[str]:
    """Resources that neither this plugin nor Snakemake reads."""
    read = {*RESOURCES, *SNAKEMAKES_OWN, *declared}
    return [
        name
        for name, value in resources.items()
        if name not in read and not name.startswith("_") and is_set(value)
    ]


def of_another_executor(name: str) -> bool:
    """Whether other executors know a resource."""
    return name in OTHER_EXECUTORS or name.startswith(OTHER_PREFIXES)


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
        # Noted although it is too small, so that the other checks go on and report their problems too.
        numbers[name] = math.ceil(value) if math.isfinite(value) else least
    return numbers


def read_gres(asked: dict[str, Any], extra: dict[str, str | bool], problems: list[str]) -> None:
    """Turn `gres` into GPUs of the job; what else it names becomes an option of sbatch."""
    parts = [part.strip() for part in str(asked.pop("gres", "")).split(",") if part.strip()]
    for part in parts:
        kind, *words = part.removeprefix("gres:").removeprefix("gres/").split(":")
        if kind != "gpu":
            extra["gres"] = ",".join(filter(None, [str(extra.get("gres", "")), part]))
            continue
        # Slurm takes a kind without a number for one.
        count = words.pop() if words and words[-1].isdigit() else "1"
        if len(words) > 1:
            problems.append(f"gres={part!r} cannot be read: write gpu:2 or gpu:a100:2")
            continue
        nodes = str(asked.get("nodes", 1))
        gpus = int(count) * (int(nodes) if nodes.isdigit() else 1)
        found_in_part: dict[str, int | str] = {"gpu": gpus}
        if words:
            found_in_part["gpu_model"] = words[0]
        for name, value in found_in_part.items():
            # A GPU count that stands twice must agree: to choose one of them would be a guess.
            if str(asked.setdefault(name, value)) != str(value):
                problems.append(f"gres={part} contradicts {name}={asked[name]}")


def derive_numbers(numbers: dict[str, int], threads: int) -> None:
    """CPUs and tasks that follow from other resources."""
    per_gpu = numbers.pop("cpus_per_gpu", None)
    if per_gpu and numbers.get("gpu"):
        numbers.setdefault("cpus", per_gpu * numbers["gpu"] // numbers.get("nodes", 1))
    # Slurm binds a job to its CPUs: with fewer than the rule's threads these would share them.
    numbers.setdefault("cpus", max(1, threads))
    nodes = numbers.get("nodes", 1)
    numbers.setdefault("tasks", nodes * numbers.pop("tasks_per_node", 1))


def read_extra(text: str, problems: list[str], gpu_option: str = "auto") -> dict[str, str | bool]:
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
        # GPUs that only sbatch knows of would be missing in the checks and in the account of GPU hours.
        elif name == "gres" and "gpu" in value and gpu_option != "gres":
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
        f"gpu={gpu} cannot be shared evenly by nodes={nodes}": nodes > 0 and gpu % nodes != 0,
        "gpu_model is set but gpu is not: how many?": "gpu_model" in texts and gpu == 0,
    }
    return [problem for problem, wrong in checks.items() if wrong]

"""Talking to Slurm: commands that may fail because Slurm is busy, and what the cluster has to offer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from snakemake_executor_plugin_submitit.requests import Request, nearest

__all__ = [
    "Backoff",
    "ClusterFacts",
    "Partition",
    "QueueFullError",
    "SlurmBusyError",
    "SlurmRefusedError",
    "ask",
    "ask_patiently",
    "clean_environment",
    "client_environment",
    "explain_environment",
    "read_facts",
    "shell_defaults",
]

COMMAND_TIMEOUT_S = 40.0
# Slurm's clients end with 1 for "not now" and for "no"; only the text of the message differs.
BUSY_WORDS = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "connection reset",
    "temporarily unable to accept job",
    "resource temporarily unavailable",
    "zero bytes were transmitted or received",
    "unexpected message received",
    "slurm_persist_conn",
    "slurmctld is in standby",
    "communication connection failure",
    "communication shutdown failure",
    "unable to connect to slurm",
    "transport endpoint is not connected",
    "network is unreachable",
    "no route to host",
    "timed out after",
)


class SlurmBusyError(RuntimeError):
    """Slurm did not answer this time; asking again later makes sense."""


class SlurmRefusedError(RuntimeError):
    """Slurm answered, and the answer is no."""


class QueueFullError(SlurmRefusedError):
    """Slurm takes no further jobs, or not so many at once, until others have left the queue."""


def ask(command: Sequence[str], timeout: float = COMMAND_TIMEOUT_S) -> str:
    """Run one of Slurm's commands and return what it prints. Raises SlurmBusyError or SlurmRefusedError."""
    # A client of Slurm may hang when its controller is overloaded; this Snakemake must not hang with it.
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=client_environment()
        )
    except subprocess.TimeoutExpired:
        raise SlurmBusyError(f"{command[0]} timed out after {timeout:.0f} s") from None
    except FileNotFoundError:
        raise SlurmRefusedError(f"the command {command[0]} is not there") from None
    if answer.returncode == 0:
        return answer.stdout
    raise classify(f"{answer.stderr.strip() or answer.stdout.strip()}", command[0])


def classify(message: str, command: str) -> SlurmBusyError | SlurmRefusedError:
    """Tell an answer 'not now' from an answer 'no'."""
    # Messages of several lines become one: each problem is shown in a line.
    short = f"{command}: {' '.join(message.split())}"
    if any(word in message.lower() for word in BUSY_WORDS):
        return SlurmBusyError(short)
    return SlurmRefusedError(short)


def queue_full(message: str) -> bool:
    """Whether Slurm refused because the user, or his group, may not have so many jobs in the queue."""
    return re.search(r"maxsubmit|submitjob.*limit", message, re.IGNORECASE) is not None


@dataclass
class Backoff:
    """Waiting times that double up to a limit while Slurm does not answer."""

    first: float = 2.0
    longest: float = 60.0
    failures: int = 0

    def failed(self) -> float:
        """Count a failure and return the seconds to wait."""
        self.failures += 1
        return float(min(self.longest, self.first * 2 ** (self.failures - 1)))

    def answered(self) -> bool:
        """Forget the failures; True if there were any."""
        was_silent, self.failures = self.failures > 0, 0
        return was_silent


def ask_patiently(command: Sequence[str], say: Callable[[str], None], give_up_after: float = 1800.0) -> str:
    """Ask until Slurm answers, saying once that it does not; SlurmBusyError after `give_up_after` seconds."""
    backoff, deadline = Backoff(), time.monotonic() + give_up_after
    while True:
        try:
            return ask(command)
        except SlurmBusyError as error:
            if time.monotonic() > deadline:
                raise
            if backoff.failures == 0:
                say(f"Slurm does not answer ({error}); asking again until it does.")
            time.sleep(backoff.failed())


# Without these a client cannot find its cluster, so a job would go nowhere or elsewhere.
KEPT_VARIABLES = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
"""What a client of Slurm may inherit: where its configuration is, who the user is, which cluster is meant."""
CLIENT_PREFIXES = (
    "SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_",
    "SCONTROL_",
)  # fmt: skip
SHELL_DEFAULTS = {
    "SBATCH_ACCOUNT": "slurm_account",
    "SBATCH_PARTITION": "slurm_partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "runtime",
}
"""Variables of the submitting shell that hold where a rule and the profile are silent."""


def client_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a client of Slurm: without what would change its question, its answer or a job.

    A filter of the user's own (SQUEUE_PARTITION) would hide running jobs, an option of sbatch (SBATCH_WAIT)
    override what a rule asks for, and the variables of a surrounding job describe that one.
    """
    kept = {name: value for name, value in environment.items() if not is_for_clients(name)}
    if "SBATCH_CLUSTERS" in environment:
        # Only sbatch reads SBATCH_CLUSTERS, and squeue must ask about the cluster to which the jobs go.
        kept.setdefault("SLURM_CLUSTERS", environment["SBATCH_CLUSTERS"])
    return kept


def is_for_clients(name: str) -> bool:
    """Whether a variable changes what Slurm's clients do, but for those that they need."""
    return name.startswith(CLIENT_PREFIXES) and name not in KEPT_VARIABLES


@contextmanager
def clean_environment() -> Iterator[None]:
    """Give this process a client's environment, for programs that others start (submitit's sbatch)."""
    # submitit calls sbatch itself and takes no environment, so the one of this
    # process changes for a moment.
    before = dict(os.environ)
    cleaned = client_environment(before)
    replace_environment(cleaned)
    try:
        yield
    finally:
        replace_environment(before)


def replace_environment(environment: Mapping[str, str]) -> None:
    """Make os.environ equal to a mapping."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def shell_defaults(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Resources that the submitting shell names by SBATCH_* variables, for rules and profiles that do not."""
    defaults = {
        resource: environment[name] for name, resource in SHELL_DEFAULTS.items() if environment.get(name)
    }
    # Slurm's notation of a time limit is no number; one that cannot be read counts as not said.
    if minutes := read_minutes(defaults.pop("runtime", "")):
        defaults["runtime"] = str(minutes)
    if export := environment.get("SBATCH_EXPORT"):
        defaults["slurm_extra"] = f"--export={export}"
    return defaults


def explain_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What is made of Slurm's variables in the submitting shell, one line for each kind."""
    used = {*SHELL_DEFAULTS, "SBATCH_EXPORT", "SBATCH_CLUSTERS"} & environment.keys()
    # SLURM_* are left out: inside a job of Slurm dozens are set, and one line about that job says enough.
    dropped = [
        name
        for name in sorted(environment)
        if is_for_clients(name) and name not in used and not name.startswith(("SLURM", "SRUN_"))
    ]
    lines = []
    if used:
        values = ", ".join(f"{name}={environment[name]}" for name in sorted(used))
        lines.append(f"your shell sets {values}: used where neither rule nor profile says anything else.")
    if dropped:
        lines.append(f"your shell sets {', '.join(dropped)}: not passed on, the plugin decides these itself.")
    if job := environment.get("SLURM_JOB_ID"):
        lines.append(f"Snakemake runs inside job {job} of Slurm, whose SLURM_* variables are not passed on.")
    return lines


@dataclass(frozen=True)
class Partition:
    """What the largest node of a partition has, and how long a job may run there."""

    name: str
    default: bool
    available: bool
    minutes: int | None
    usual_minutes: int | None
    cpus: int
    mem_mb: int
    nodes: int
    gpus: dict[str, int] = field(default_factory=dict)

    def most_gpus(self, model: str | None = None) -> int:
        """GPUs (of a type) on the node that has most of them."""
        return max((count for name, count in self.gpus.items() if model in (None, name)), default=0)


@dataclass(frozen=True)
class ClusterFacts:
    """What the plugin must know of a cluster before it submits anything."""

    partitions: dict[str, Partition]
    max_array_size: int
    accounting: bool
    name: str = ""

    def problems(self, request: Request) -> list[str]:
        """Why a request can never run here, one line each."""
        valid = ", ".join(sorted(self.partitions))
        # An unknown partition goes alone: without it there is no limit to compare the rest with.
        names = request.slurm_partition.split(",") if request.slurm_partition else []
        if unknown := [name for name in names if name not in self.partitions]:
            return [
                f"partition {name!r} does not exist{nearest(name, self.partitions)}; valid are {valid}"
                for name in unknown
            ]
        partition = self._partition(request.slurm_partition)
        if partition is None:
            return [f"the cluster has no default partition: set slurm_partition to one of {valid}"]
        return [problem for problem, wrong in too_much(partition, request) if wrong]

    def minutes(self, request: Request) -> int | None:
        """The time limit that a job will have; None for no limit."""
        if request.runtime is not None:
            return request.runtime
        partition = self._partition(request.slurm_partition)
        return None if partition is None else partition.usual_minutes

    def _partition(self, name: str | None) -> Partition | None:
        if name is None:
            return next((partition for partition in self.partitions.values() if partition.default), None)
        if "," in name:  # several partitions: Slurm takes the first that can start the job
            known = [self.partitions[part] for part in name.split(",") if part in self.partitions]
            return max(known, key=Partition.most_gpus, default=None)
        return self.partitions.get(name)


def too_much(partition: Partition, request: Request) -> Iterator[tuple[str, bool]]:
    """Each limit of a partition with a line about it and whether the request breaks it."""
    where = f"partition {partition.name!r}"
    # The other lines would count GPUs of a type that is not there.
    if request.gpu_model and request.gpu_model not in partition.gpus:
        valid = ", ".join(sorted(name for name in partition.gpus if name)) or "none named"
        yield f"{where} has no GPU of type {request.gpu_model!r}; types: {valid}", True
        return
    most = partition.most_gpus(request.gpu_model)
    yield (
        f"gpu: {request.gpus_per_node} per node asked, but no node of {where} has more than {most}",
        request.gpus_per_node > most,
    )
    yield (
        f"cpus: {request.cpus} asked, but no node of {where} has more than {partition.cpus}",
        (request.cpus > partition.cpus),
    )
    yield (
        f"mem_mb: {request.mem_mb} asked, but no node of {where} has more than {partition.mem_mb}",
        ((request.mem_mb or 0) > partition.mem_mb),
    )
    yield (
        f"nodes: {request.nodes} asked, but {where} has only {partition.nodes}",
        request.nodes > partition.nodes,
    )
    yield (
        f"runtime: {request.runtime} minutes asked, but {where} allows {partition.minutes}",
        (partition.minutes is not None and (request.runtime or 0) > partition.minutes),
    )


def read_facts(say: Callable[[str], None]) -> ClusterFacts:
    """Ask Slurm for its partitions and limits, waiting if it does not answer."""
    # --all, because a partition may be hidden from sinfo and still take jobs.
    listing = ask_patiently(["sinfo", "--all", "--noheader", "--format=%P|%l|%L|%a|%G|%c|%m|%D"], say)
    config = ask_patiently(["scontrol", "show", "config"], say)
    values = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config, flags=re.MULTILINE))
    return ClusterFacts(
        partitions=read_partitions(listing),
        # 1001 is Slurm's own default.
        max_array_size=int(values.get("MaxArraySize", "1001")),
        accounting="slurmdbd" in values.get("AccountingStorageType", "")
        and shutil.which("sacct") is not None,
        name=values.get("ClusterName", ""),
    )


def read_partitions(listing: str) -> dict[str, Partition]:
    """Read sinfo's lines; a partition with several kinds of nodes has several. A banner is skipped."""
    partitions: dict[str, Partition] = {}
    for line in listing.splitlines():
        fields = line.split("|")
        # Sites print banners on every command: only lines of the asked form count.
        if len(fields) != 8 or fields[3] not in ("up", "down", "drain", "inact"):
            continue
        name, minutes, usual, available, gres, cpus, memory, nodes = fields
        partition = Partition(
            name=name.rstrip("*"),
            default=name.endswith("*"),
            available=available == "up",
            minutes=read_minutes(minutes),
            # A partition without a default time gives its jobs its largest.
            usual_minutes=read_minutes(usual) or read_minutes(minutes),
            cpus=leading_number(cpus),
            mem_mb=leading_number(memory),
            nodes=leading_number(nodes),
            gpus=read_gpus(gres),
        )
        # sinfo prints a line per kind of node, and a job needs only one kind that is large enough.
        earlier = partitions.get(partition.name)
        partitions[partition.name] = larger(earlier, partition) if earlier else partition
    return partitions


def larger(first: Partition, second: Partition) -> Partition:
    """One partition out of two lines of sinfo: the most that any of its nodes has."""
    gpus = {
        name: max(first.gpus.get(name, 0), second.gpus.get(name, 0)) for name in {*first.gpus, *second.gpus}
    }
    return Partition(
        name=first.name,
        default=first.default,
        available=first.available,
        minutes=first.minutes,
        usual_minutes=first.usual_minutes,
        cpus=max(first.cpus, second.cpus),
        mem_mb=max(first.mem_mb, second.mem_mb),
        nodes=first.nodes + second.nodes,
        gpus=gpus,
    )


def read_gpus(gres: str) -> dict[str, int]:
    """GPUs of a node by type (may be empty), from Slurm's notation: gpu:2, gpu:a100:4(S:0-1), (null)."""
    gpus: dict[str, int] = {}
    for model, count in re.findall(r"\bgpu(?::([^:,()]+))?:(\d+)", gres):
        gpus[model] = gpus.get(model, 0) + int(count)
    return gpus


def read_minutes(text: str) -> int | None:
    """Minutes of Slurm's time notation (days-hours:minutes:seconds); None for infinite."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    # Slurm's notation is read from its parts: one number means minutes, two mean minutes and seconds.
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    # After days the clock begins with hours, without them a short clock ends with seconds.
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = (0, *parts)[-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + (1 if seconds else 0)


def leading_number(text: str) -> int:
    """The number at the start of a field such as `64+`."""
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0

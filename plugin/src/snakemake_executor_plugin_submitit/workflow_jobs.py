"""What the plugin knows of one of Snakemake's jobs: its key, its files, its request and its journal entry."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_executor_plugin_submitit.job import SnakemakeJob
from snakemake_executor_plugin_submitit.journal import JournalEntry, make_key
from snakemake_executor_plugin_submitit.requests import (
    Request,
    RequestError,
    ignored_resources,
    read_request,
)
from snakemake_executor_plugin_submitit.slurm import shell_defaults

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.backends import Backend
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings

__all__ = [
    "RequestReader",
    "all_exist",
    "asked_as_unfinished",
    "fingerprint",
    "key_of",
    "make_entry",
    "make_submitted",
    "outputs_of",
    "title_of",
]

LONGEST_TITLE = 200
NAMES_FILE = Path(".snakemake/submitit/names.json")
"""A workflow may write it: what people call a wildcard's value, as a JSON object from value to text."""


def members_of(job: Any) -> list[Any]:
    """The jobs of a group, or the job itself."""
    return list(job.jobs) if job.is_group() else [job]


def outputs_of(job: Any) -> list[str]:
    """What a job makes; for a group also what only its own jobs read."""
    return [str(path) for member in members_of(job) for path in member.output]


def wildcards_of(job: Any) -> dict[str, str]:
    """A job's wildcards; a group has none of its own."""
    if job.is_group():
        return {}
    return {str(name): str(value) for name, value in job.wildcards_dict.items()}


def key_of(job: Any) -> str:
    """The journal's name of a job."""
    return make_key(outputs_of(job), job.name, wildcards_of(job))


def fingerprint(job: Any) -> str:
    """Changes when the command or the parameters of a job change."""
    if job.is_group():
        return ""
    text = f"{getattr(job, 'shellcmd', '') or ''}\n{[str(value) for value in job.params]}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def all_exist(job: Any) -> bool:
    """Whether everything that others may read of a job is there now."""
    return all(Path(str(path)).exists() for path in job.output)


def asked_as_unfinished(workflow: Any, job: Any) -> bool:
    """Whether Snakemake wants a job only because its outputs were not there, or not whole, when it looked.

    A job that the user forces, or whose inputs are made anew, must run again even if it has just ended.
    """
    # Snakemake marks jobs as forced by itself too, after an incomplete output: only
    # the user's force counts.
    settings = workflow.dag_settings
    by_user = bool(settings.forceall or settings.forcetargets or settings.forcerun)
    reasons = [workflow.dag.reason(member) for member in members_of(job)]
    renewed = any(why.updated_input or why.updated_input_run or (why.forced and by_user) for why in reasons)
    return not renewed and any(why.missing_output or why.incomplete_output or why.forced for why in reasons)


class RequestReader:
    """Reads the requests of a workflow's jobs, and remembers which of their resources nothing reads."""

    def __init__(self, workflow: Any, settings: ExecutorSettings) -> None:
        self.declared = [str(name) for name in workflow.global_resources]
        # SBATCH_* variables are meant for Slurm and say nothing about this machine's processes.
        self.defaults = shell_defaults() if settings.cluster == "slurm" else {}
        self.gpu_option = settings.gpu_option
        self.ignored: dict[str, str] = {}

    def request_of(self, job: Any) -> Request:
        """The request of a job. Raises RequestError."""
        # some resources have their value only when their input files exist
        resources = {name: value for name, value in job.resources.items() if str(value) != "<TBD>"}
        if resources.keys() >= {"mem_mb", "mem_mb_per_cpu"}:  # Snakemake and profiles set mem_mb by default
            for name in ("mem_mb", "mem_mb_per_cpu"):
                if is_default(job, name):
                    del resources[name]
                    break
        self.ignored.update(ignored_resources(resources, self.declared))
        kind = "group" if job.is_group() else "rule"
        return read_request(
            resources,
            job.threads,
            f"{kind} {job.name}",
            self.declared,
            defaults=self.defaults,
            gpu_option=self.gpu_option,
        )

    def requests_of_rules(self, jobs: Iterable[Any]) -> tuple[dict[Request, str], list[str]]:
        """All different requests with the first rule that makes each, and every problem once."""
        requests: dict[Request, str] = {}
        problems: list[str] = []
        for job in jobs:
            try:
                requests.setdefault(self.request_of(job), job.name)
            except RequestError as error:
                problems += [problem for problem in error.problems if problem not in problems]
        return requests, problems

    def explain_ignored(self) -> str | None:
        """One line about the resources that are passed over; None if there are none."""
        if not self.ignored:
            return None
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.ignored.items()))
        return f"resources that nothing here reads ({reasons})"


def is_default(job: Any, name: str) -> bool:
    """Whether a resource of a rule is what --default-resources says, no value of the rule's own."""
    try:
        rule = job.rule
        default = rule.workflow.resource_settings._parsed_default_resources[name]
        chosen = rule.resources[name]
    except (AttributeError, KeyError):  # a group, or a Snakemake that keeps them elsewhere
        return False
    return bool(chosen.raw is not None and chosen.raw == default.raw)


def make_entry(
    job: Any, request: Request, backend: Backend, *, script: str, token: str, index: int | None
) -> JournalEntry:
    """The journal's entry of a job that is about to be submitted, alone (index None) or in an array."""
    wildcards = wildcards_of(job)
    return JournalEntry(
        key=key_of(job),
        name=" ".join([job.name, *(f"{name}={value}" for name, value in wildcards.items())]),
        rule=job.name,
        wildcards=wildcards,
        outputs=sorted(outputs_of(job)),
        cluster=backend.name,
        cluster_name=backend.cluster_name,
        host=backend.host,
        token=token,
        index=index,
        script=script,
        # A retry has a mark of its own, so it begins a new record.
        record=str(backend.records / f"{token}_{index or 0}.json"),
        submitted=time.time(),
        fingerprint=fingerprint(job),
        gpus=request.gpu,
        resources={name: value for name, value in asdict(request).items() if value not in (None, (), 0)},
    )


def title_of(job: Any) -> str:
    """What squeue shows of a job, in characters that Slurm takes: its rule's message, if it has one.

    Else its rule and its wildcards' values, each with its name of NAMES_FILE.
    """
    # Groups have no message of their own.
    text = getattr(job, "message", None)
    if not text:
        try:
            names = _read_names(NAMES_FILE.stat().st_mtime_ns)
        except (OSError, ValueError):  # a name is a nicety: without it the job is submitted all the same
            names = {}
        values = [f"{value} {names.get(value, '')}" for value in wildcards_of(job).values()]
        text = "-".join([job.name, *map(str.strip, values)])
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")[:LONGEST_TITLE]


@lru_cache(maxsize=1)  # thousands of jobs ask for the same file
def _read_names(changed: int) -> dict[str, str]:
    content = json.loads(NAMES_FILE.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return {}
    return {str(value): str(name) for value, name in content.items()}


def files_to_see(paths: Iterable[Any]) -> list[str]:
    """Those of a job's files that its node must see: neither in a storage nor removed at its end."""
    passing = {"temp", "pipe", "service"}
    return [
        str(path)
        for path in paths
        if not getattr(path, "is_storage", False) and not passing & set(getattr(path, "flags", ()))
    ]


def make_submitted(
    job: Any, entry: JournalEntry, request: Request, backend: Backend, latency_s: float = 5.0
) -> SnakemakeJob:
    """What submitit runs on the node for one of Snakemake's jobs and its entry of the journal."""
    in_array = entry.index is not None and backend.name == "slurm"
    return SnakemakeJob(
        Path(entry.script),
        Path.cwd(),
        Path(entry.record),
        cluster=backend.name,
        runtime_s=60.0 * backend.minutes(request),
        signal_s=float(backend.signal_seconds(request)),
        max_timeouts=backend.settings.max_timeouts,
        gpus=request.gpu,
        cpus=request.cpus,
        memory_mb=request.mem_mb or 0,
        launcher=request.launcher,
        submitted=entry.submitted,
        inputs=files_to_see(job.input),
        outputs=files_to_see(job.output),
        latency_s=latency_s,
        # An array has one name: each of its tasks says its own when it starts.
        title=title_of(job) if in_array else "",
    )

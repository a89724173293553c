"""Asking Slurm beforehand: would it take the jobs of each rule?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError  # type: ignore[import-untyped, unused-ignore]

from snakemake_executor_plugin_submitit.requests import Request, RequestError, read_request
from snakemake_executor_plugin_submitit.slurm import SlurmBusyError

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.backends import Backend
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings

__all__ = ["check_in_dry_runs", "request_of", "requests_of_rules", "try_submissions"]


def request_of(job: Any, declared: Iterable[str] = ()) -> Request:
    """The request of one of Snakemake's jobs. Raises RequestError."""
    resources = {name: value for name, value in job.resources.items() if known(value)}
    kind = "group" if job.is_group() else "rule"
    return read_request(resources, job.threads, f"{kind} {job.name}", declared)


def known(value: Any) -> bool:
    """Whether a resource has its value already; some have it only when their input files exist."""
    return not (isinstance(value, str) and value == "<TBD>")


def requests_of_rules(jobs: Iterable[Any], declared: Iterable[str]) -> tuple[dict[Request, str], list[str]]:
    """All different requests with the first rule that makes each, and every problem once."""
    requests: dict[Request, str] = {}
    problems: list[str] = []
    for job in jobs:
        try:
            requests.setdefault(request_of(job, declared), job.name)
        except RequestError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return requests, problems


def try_submissions(backend: Backend, requests: dict[Request, str], say: Callable[[str], None]) -> list[str]:
    """Ask Slurm about each request and say what it answers; the refusals are returned."""
    refusals = []
    for request, rule in requests.items():
        try:
            answer = backend.try_submission(request, rule)  # type: ignore[attr-defined]
        except SlurmBusyError as error:
            say(f"sbatch --test-only, rule {rule}: no answer ({error}), so nobody knows")
            continue
        say(f"sbatch --test-only, rule {rule}: {answer or 'would be taken'}")
        if answer is not None:
            refusals.append(f"rule {rule}: {answer}")
    return refusals


def check_in_dry_runs(settings: ExecutorSettings) -> None:
    """Let Snakemake's dry run ask Slurm as well; a dry run never makes the executor itself."""
    if not {"-n", "--dry-run", "--dryrun"} & set(sys.argv):
        return
    from snakemake.executors import dryrun

    original = dryrun.Executor.run_jobs
    asked: set[Request] = set()

    def run_jobs(self: Any, jobs: list[Any]) -> None:
        original(self, jobs)
        remote = [job for job in jobs if not runs_here(self.workflow, job)]
        requests, problems = requests_of_rules(remote, self.workflow.global_resources)
        new = {request: rule for request, rule in requests.items() if request not in asked}
        asked.update(new)
        problems += check_requests(settings, new, self.logger.info) if new else []
        if problems:
            raise WorkflowError("\n".join(problems))

    dryrun.Executor.run_jobs = run_jobs


def runs_here(workflow: Any, job: Any) -> bool:
    """Whether a job would run on this machine; in a dry run Snakemake calls every job local."""
    if job.is_group():
        return False
    rule = job.rule
    local: set[str] = getattr(workflow, "_localrules", set())
    return rule.group is None and (rule.name in local or bool(rule.norun))


def check_requests(
    settings: ExecutorSettings, requests: dict[Request, str], say: Callable[[str], None]
) -> list[str]:
    """Everything that can be known about requests without submitting them."""
    from snakemake_executor_plugin_submitit.backends import make_backend
    from snakemake_executor_plugin_submitit.probe import unwritable
    from snakemake_executor_plugin_submitit.settings import setting_problems

    if problems := setting_problems(settings):
        return problems
    folder = Path(".snakemake/submitit/jobs").absolute()
    if problem := unwritable(folder):
        return [problem]
    backend = make_backend(settings, folder, say)
    backend.prepare()
    never = [
        f"rule {rule}: {line}" for request, rule in requests.items() for line in backend.problems(request)
    ]
    if never or settings.cluster != "slurm":
        return never
    return try_submissions(backend, requests, say)

"""Asking Slurm beforehand: would it take the jobs of each rule? Also in Snakemake's dry run (`-n`)."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError  # type: ignore[import-untyped, unused-ignore]

from snakemake_executor_plugin_submitit.backends import Backend, make_backend
from snakemake_executor_plugin_submitit.probe import unwritable
from snakemake_executor_plugin_submitit.requests import Request
from snakemake_executor_plugin_submitit.settings import setting_problems
from snakemake_executor_plugin_submitit.slurm import SlurmBusyError
from snakemake_executor_plugin_submitit.workflow_jobs import RequestReader

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings

__all__ = ["check_in_dry_runs", "try_submissions"]


def try_submissions(backend: Backend, requests: dict[Request, str], say: Callable[[str], None]) -> list[str]:
    """Ask Slurm about each request and say what it answers; the refusals are returned."""
    refusals = []
    for request, rule in requests.items():
        try:
            answer = backend.try_submission(request, rule)  # type: ignore[attr-defined]
        # No answer is no refusal: a dry run should not fail because Slurm is busy.
        except SlurmBusyError as error:
            say(f"sbatch --test-only, rule {rule}: no answer ({error}), so nobody knows")
            continue
        say(f"sbatch --test-only, rule {rule}: {answer or 'would be taken'}")
        if answer is not None:
            refusals.append(f"rule {rule}: {answer}")
    return refusals


def check_in_dry_runs() -> None:
    """Let a dry run with --submitit-test-only ask Slurm.

    Snakemake replaces the executor in a dry run and has no hook for a plugin there, so its own dry run is
    extended: it does what it always does, then the rules it has shown are checked.
    """
    from snakemake.executors import dryrun

    show_jobs = dryrun.Executor.run_jobs
    asked: set[Request] = set()

    def run_jobs(self: Any, jobs: list[Any]) -> None:
        show_jobs(self, jobs)
        settings = settings_of_command_line()
        # Only on request: a dry run must be fast and work without a cluster.
        if settings is None or not settings.test_only:
            return
        remote = [job for job in jobs if not runs_here(self.workflow, job)]
        requests, problems = RequestReader(self.workflow, settings).requests_of_rules(remote)
        # Snakemake shows a dry run's jobs in several rounds, and Slurm is asked about each request once.
        new = {request: rule for request, rule in requests.items() if request not in asked}
        asked.update(new)
        if new:
            problems += check_requests(settings, new, self.logger.info)
        if problems:
            raise WorkflowError("\n".join(problems))

    dryrun.Executor.run_jobs = run_jobs


@functools.cache
def settings_of_command_line() -> ExecutorSettings | None:
    """The settings of this call of Snakemake, profiles included; None if it uses another executor."""
    from snakemake.cli import parse_args
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry  # type: ignore[import-untyped, unused-ignore]

    # Snakemake has parsed this command line before: what its parser prints must not appear twice.
    with Path(os.devnull).open("w") as silence, contextlib.redirect_stderr(silence):
        _, arguments = parse_args(sys.argv[1:])
    if arguments.executor != "submitit":
        return None
    settings: ExecutorSettings = ExecutorPluginRegistry().get_plugin("submitit").get_settings(arguments)
    return settings


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
    if problems := setting_problems(settings):
        return problems
    folder = Path(".snakemake/submitit/jobs").absolute()
    # Asked before a backend is made, because that creates its folders.
    if problem := unwritable(folder):
        return [problem]
    backend = make_backend(settings, folder, say)
    backend.prepare()
    never = [
        f"rule {rule}: {line}" for request, rule in requests.items() for line in backend.problems(request)
    ]
    # What the plugin knows to be impossible need not be asked of Slurm.
    if never or settings.cluster != "slurm":
        return never
    return try_submissions(backend, requests, say)

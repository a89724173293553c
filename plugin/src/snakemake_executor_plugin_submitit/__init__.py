"""Snakemake executor plugin: any rule becomes a job through submitit, on Slurm or without it.

Jobs continue after time limits, preemption and node failures; a new call of Snakemake finds the jobs of an
earlier one. See the README of this package. Importing it is cheap: a job on its node needs neither the
executor nor the interfaces of Snakemake, which are imported when Snakemake asks for them; submitit is
imported when the first job is submitted.
"""

import gc
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.executor import Executor
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

HOMES = {"Executor": "executor", "ExecutorSettings": "settings", "common_settings": "settings"}


def __getattr__(name: str) -> Any:
    """The three names that Snakemake asks a plugin for."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Executor":
        act_before_snakemake(sys.argv)
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def act_before_snakemake(arguments: list[str]) -> None:
    """Do what Snakemake offers no hook for: explain a lock that it will refuse, and take part in a dry run.

    It makes the executor only after it has taken the folder's lock, and never in a dry run; it loads its
    plugins in every call.
    """
    words = set(arguments[1:])
    if {"--mode", "remote"} <= words:  # a job's own Snakemake
        gc.freeze()  # looking for garbage among what it has imported takes a quarter of its CPU time
        return
    if "snakemake" not in arguments[0]:  # another program reads the plugin
        return
    if {"-n", "--dry-run", "--dryrun"} & words:
        from snakemake_executor_plugin_submitit.dryrun import check_in_dry_runs

        check_in_dry_runs()
    elif not {"--unlock", "--nolock", "--cleanup-metadata"} & words:
        from snakemake_executor_plugin_submitit.controller import report_lock

        report_lock()

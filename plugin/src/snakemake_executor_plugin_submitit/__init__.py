"""Snakemake executor plugin: any rule becomes a job through submitit, on Slurm or without it.

Jobs continue after time limits, preemption and node failures; a new call of Snakemake finds the jobs of an
earlier one. See the README of this package. Importing it is cheap: a job on its node needs neither the
executor nor the interfaces of Snakemake, which are imported when somebody asks for them; submitit is imported
when the first job is submitted.
"""

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
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)

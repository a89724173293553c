"""Settings of the executor: data only, with the help texts that `snakemake --help` shows."""

from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase  # type: ignore[import-untyped, unused-ignore]

from snakemake_executor_plugin_submitit.requests import GPU_OPTIONS, nearest

__all__ = ["CLUSTERS", "ExecutorSettings", "common_settings", "setting_problems"]

CLUSTERS = ("slurm", "local", "debug")

common_settings = CommonSettings(
    non_local_exec=True,
    # Jobs work in the folder of the controller: its file system is shared with the nodes.
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    # Results are files that this machine sees, so there is nothing for which the first look should wait.
    init_seconds_before_status_checks=0,
    pass_group_args=True,
)


def setting(default: Any, help_text: str) -> Any:
    """One setting with its default and its help."""
    return field(default=default, metadata={"help": help_text, "env_var": False, "required": False})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc, unused-ignore]
    """What a user may set as --submitit-<name>."""

    cluster: str = setting(
        "slurm",
        "Where jobs run: slurm, local (processes of this machine that survive Snakemake) or "
        "debug (one after the other, inside Snakemake).",
    )
    signal_seconds: int = setting(
        120, "Seconds before the time limit at which a job is asked (SIGUSR2) to save its state and end."
    )
    max_timeouts: int = setting(
        20, "How many time limits a job may meet and still be continued. Preemptions do not count."
    )
    array_size: int = setting(
        1000, "Largest job array (kept below the cluster's MaxArraySize); 1 submits every job on its own."
    )
    array_throttle: int = setting(0, "How many tasks of one array may run at a time; 0 for no limit.")
    poll_seconds: int = setting(10, "Seconds between two questions to Slurm about all jobs (one squeue).")
    on_interrupt: str = setting(
        "leave",
        "What Ctrl-C does with submitted jobs: leave (they go on, the same command finds them again) "
        "or cancel.",
    )
    gpus: str = setting(
        "",
        "Cluster local: the GPUs that jobs share, e.g. 0,1,2,3 (or UUIDs, MIG ids); empty: all.",
    )
    setup: str = setting("", "Shell line that every job runs first, e.g. 'module load cuda'.")
    shared_folder_check: str = setting(
        "yes", "Before the first submission look from a node whether it sees this folder: yes or no."
    )
    keep_days: int = setting(
        30, "Days after which logs, records and scripts of jobs that have ended are removed; 0 keeps them."
    )
    gpu_option: str = setting(
        "auto",
        "How the cluster counts GPUs: gpus-per-node, gres or gpus-per-task; auto: the first of them that "
        "sbatch --test-only accepts.",
    )
    test_only: bool = setting(
        False,
        "Ask Slurm for each rule whether it would take its jobs (sbatch --test-only), also in a dry run.",
    )


LEAST = {
    "signal_seconds": 1,
    "max_timeouts": 0,
    "array_size": 1,
    "array_throttle": 0,
    "poll_seconds": 1,
    "keep_days": 0,
}
CHOICES = {
    "cluster": CLUSTERS,
    "on_interrupt": ("leave", "cancel"),
    "shared_folder_check": ("yes", "no"),
    "gpu_option": ("auto", *GPU_OPTIONS),
}


def setting_problems(settings: ExecutorSettings) -> list[str]:
    """What is wrong with the settings, one line each."""
    problems = [
        f"--submitit-{name.replace('_', '-')} must be {least} or more, not {getattr(settings, name)}"
        for name, least in LEAST.items()
        if getattr(settings, name) < least
    ]
    for name, choices in CHOICES.items():
        value = getattr(settings, name)
        if value not in choices:
            option = f"--submitit-{name.replace('_', '-')}"
            problems.append(
                f"{option} {value!r} is unknown{nearest(value, choices)}; valid are {', '.join(choices)}"
            )
    return problems

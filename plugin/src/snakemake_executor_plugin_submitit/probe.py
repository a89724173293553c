"""Does a node see the folder in which the jobs will work?"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from snakemake_executor_plugin_submitit.requests import Request
from snakemake_executor_plugin_submitit.slurm import outside_of_jobs

__all__ = ["shared_folder_problem"]

WAIT_S = 5
TIMEOUT_S = 60


def shared_folder_problem(folder: Path, request: Request) -> str | None:
    """Look for a file from a node that is free at the moment; None if it is there or nobody can tell."""
    probe = folder / f"probe-{uuid.uuid4().hex[:8]}"
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        answer = ask_node(probe, request)
    finally:
        probe.unlink(missing_ok=True)
    if "folder-missing" not in answer:
        return None
    node = answer.split("folder-missing", 1)[1].split()[0]
    return (
        f"the folder {folder} is not shared with node {node}: jobs there could neither read input nor write "
        "results. Work in a shared folder, or skip this check with --submitit-shared-folder-check no"
    )


def ask_node(probe: Path, request: Request) -> str:
    """What a node answers, or nothing if none is free or srun may not be used here."""
    look = 'for i in 1 2 3; do test -e "$0" && exit 0; sleep 1; done; echo folder-missing "$(uname -n)"'
    where = {"partition": request.slurm_partition, "account": request.slurm_account, "qos": request.qos}
    options = [f"--{name}={value}" for name, value in where.items() if value]
    command = ["srun", "--quiet", "--nodes=1", "--ntasks=1", "--time=1", "--mem=50",
               f"--immediate={WAIT_S}", "--chdir=/", "--job-name=shared-folder-check", *options,
               "sh", "-c", look, str(probe)]  # fmt: skip
    try:
        with outside_of_jobs():
            answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout

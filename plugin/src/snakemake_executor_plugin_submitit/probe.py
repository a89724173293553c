"""Does a node see the folder in which the jobs will work, and may it write there?"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from snakemake_executor_plugin_submitit.requests import Request
from snakemake_executor_plugin_submitit.slurm import client_environment

__all__ = ["shared_folder_problem", "unwritable"]

WAIT_S = 10
TIMEOUT_S = 60
LOOK = """\
for i in 1 2 3; do test -e "$0" && break; sleep 1; done
test -e "$0" || { echo folder-missing "$(uname -n)"; exit 0; }
touch "$0.node" 2> /dev/null || echo folder-readonly "$(uname -n)"
"""
"""What the node does: look for the file that lies there, then write one beside it."""
FINDINGS = {"folder-missing": "is not shared with", "folder-readonly": "cannot be written by"}


def shared_folder_problem(folder: Path, request: Request) -> str | None:
    """Look at the folder from a node that is free at the moment; None if it works or nobody knows."""
    if problem := unwritable(folder):
        return problem
    probe = folder / f"probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        answer = ask_node(probe, request).split()
    finally:
        for path in (probe, probe.with_name(f"{probe.name}.node")):
            path.unlink(missing_ok=True)
    skip = "Work in a shared folder, or skip this check with --submitit-shared-folder-check no"
    for word, what in FINDINGS.items():
        if word in answer:
            node = answer[answer.index(word) + 1]
            return f"the folder {folder} {what} node {node}: jobs there could not write their results. {skip}"
    return None


def unwritable(folder: Path) -> str | None:
    """Why this machine cannot write to a folder, in one line; None if it can."""
    probe = folder / f"probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"the folder {folder} cannot be written: {error.strerror or error}"
    return None


def ask_node(probe: Path, request: Request) -> str:
    """What a node answers, or nothing if none is free or srun may not be used here."""
    where = {"partition": request.slurm_partition, "account": request.slurm_account, "qos": request.qos}
    options = [f"--{name}={value}" for name, value in where.items() if value]
    command = ["srun", "--quiet", "--nodes=1", "--ntasks=1", "--time=1", "--mem=50",
               f"--immediate={WAIT_S}", "--chdir=/", "--job-name=shared-folder-check", *options,
               "sh", "-c", LOOK, str(probe)]  # fmt: skip
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=client_environment()
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout

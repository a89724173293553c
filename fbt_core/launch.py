"""Start a run on the GPUs its job was given: one process, or one per GPU through torchrun.

    python -m fbt_core.launch 8 --spec JSON --settings JSON --runs results/paper/runs

A job of several nodes runs this once, on its first node; $SNAKEMAKE_SUBMITIT_LAUNCHER then starts torchrun on
each of them. This process is replaced by what it starts, so signals and exit codes are the run's own.

Outside Slurm it first waits until so many GPUs of this machine are free and takes them for the run alone
(gpu_slots), so that `snakemake --cores 32` never trains two runs on one GPU.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from fbt_core.errors import UserError

PORT = 29400


def command(gpus: int, arguments: Sequence[str], environment: Mapping[str, str], host: str) -> list[str]:
    """The command line that trains on so many GPUs (over all nodes); with 0 or 1 it is one plain process."""
    # One GPU needs no torchrun, and one process fewer can fail.
    if gpus <= 1:
        return [sys.executable, "-m", "fbt_core.run", *arguments]
    launcher = shlex.split(environment.get("SNAKEMAKE_SUBMITIT_LAUNCHER", ""))
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1")) if launcher else 1
    # torchrun starts equally many processes on each node.
    if gpus % nodes:
        raise UserError(f"{gpus} GPUs cannot be divided by {nodes} nodes", where="resources: gpu, nodes")
    # --standalone opens a port of its own on this machine; several nodes have to agree on one.
    meeting = ["--standalone"] if nodes == 1 else _meeting(nodes, environment, host)
    torchrun = [sys.executable, "-m", "fbt_core.torchrun", *meeting, f"--nproc-per-node={gpus // nodes}"]
    return [*launcher, *torchrun, "-m", "fbt_core.run", *arguments]


def _meeting(nodes: int, environment: Mapping[str, str], host: str) -> list[str]:
    """Where the nodes' torchruns find each other: on the first node, at a port of the job's own."""
    # The job's number in the port: two jobs on one node must not meet each other.
    job = environment.get("SLURM_JOB_ID", "0")
    port = PORT + int(job) % 10_000 if job.isdigit() else PORT
    return [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job}", f"--rdzv-endpoint={host}:{port}"]


def take_gpus(count: int) -> None:
    """Wait for GPUs of this run's own and show it only those; without GPUs, or if a job has them, nothing."""
    # Imported here: the package comes with the executor, which not everybody installs.
    try:
        import gpu_slots
    except ImportError:
        hint = "pip install ./plugin (it comes with this repository), or set it to 0 to train on the CPU"
        raise UserError(
            "the package that shares GPUs is missing", where="resources: gpu", hint=hint
        ) from None
    try:
        lease = gpu_slots.take(count, waiting=lambda line: print(line, file=sys.stderr, flush=True))
    except gpu_slots.SlotError as error:
        raise UserError(str(error), where="resources: gpu") from None
    os.environ.update(lease.environment)


def main(arguments: Sequence[str]) -> int:
    """Replace this process by the training; returns only where it cannot be started."""
    try:
        gpus = int(arguments[0])
        # The command first: what it refuses, it refuses before GPUs are waited for.
        program = command(gpus, arguments[1:], os.environ, socket.gethostname())
        take_gpus(gpus)
    except (IndexError, ValueError):
        print("usage: python -m fbt_core.launch GPUS [arguments of fbt_core.run]", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if gpus > 1:  # the processes save at this signal; torchrun itself would die of it and leave them alone
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return os.execvp(program[0], program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The executor's cost: wall time of small jobs, calls to Slurm, and what the controller needs.

    python benchmarks/executor.py [--parts wall calls controller poller] [--repeats 3] [--write]
    python benchmarks/executor.py --parts wall --repeats 5 --before /tmp/main/plugin/src

Needs Slurm with accounting (packages: plugin/tests/cluster.py). A Slurm of one node with four CPUs is
started in a temporary folder. `snakemake-executor-plugin-slurm` is installed into an environment of its own
outside the clone (--official FOLDER): beside this plugin it would slow down every start of Snakemake.
`--before` measures another tree of this plugin in turns with this one. Part `poller` needs no Slurm: what
following 10,000 jobs costs, with answers of squeue that are made up.
`--write` puts the figures into benchmarks/README.md, section "Executor".
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugin" / "tests"))

from cluster import Cluster, wait_for  # noqa: E402

README = Path(__file__).with_name("README.md")
PLUGIN = ROOT / "plugin" / "src"
SLOTS = 4
QUEUED = 1000
SETTLED_S = 20.0
COUNTED = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "srun")
OFFICIAL = "snakemake-executor-plugin-slurm==2.8.0"
WORKFLOW = """\
rule all:
    input: expand("out/{{number}}", number=range({jobs}))

rule work:
    output: "out/{{number}}"
    resources: mem_mb=1500, runtime=10
    shell: "sleep {seconds}; touch {{output}}"
"""
RATE = ["--max-jobs-per-timespan", "1000/1s"]
SUBMITIT = ["--executor", "submitit", "--jobs", "1100", *RATE]
SINGLE = [*SUBMITIT, "--submitit-array-size", "1"]
DEFAULT = ["--executor", "slurm", "--jobs", "1100"]
TUNED = [
    *DEFAULT,
    *RATE,
    "--seconds-between-status-checks",
    "1",
    "--slurm-init-seconds-before-status-checks",
    "1",
]
LOCAL = ["--cores", str(SLOTS)]
COMPARED = ("submitit, arrays", "official plugin, tuned (checks every second)")
ONCE = ("official plugin, default", "submitit, single jobs")
"""Ways that are measured once: they are there for comparison only."""


def make_official(folder: Path) -> Path:
    """An environment with the official plugin, made once; returns its python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        snakemake = subprocess.run(
            [sys.executable, "-m", "snakemake", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"snakemake=={snakemake}", OFFICIAL], check=True
        )
    return python


def make_workflow(folder: Path, jobs: int, seconds: float) -> None:
    """Independent jobs that sleep."""
    folder.mkdir(parents=True)
    (folder / "Snakefile").write_text(WORKFLOW.format(jobs=jobs, seconds=seconds))


def environment(cluster: Cluster, python: Path, folder: Path | None = None) -> dict[str, str]:
    """A login shell in which calls to Slurm's commands are counted if a folder for that is given."""
    path = f"{python.parent}:{cluster.environment['PATH']}"
    if folder is not None:
        path = f"{count_calls(folder, cluster.conf)}:{path}"
    return {**cluster.environment, "PATH": path}


def count_calls(folder: Path, conf: Path) -> Path:
    """Commands of Slurm that note their name; the official plugin strips SLURM_CONF, so they set it again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COUNTED:
        script = folder / name
        lines = [
            f"echo {name} >> {folder}/calls",
            f"export SLURM_CONF={conf}",
            f'exec {shutil.which(name)} "$@"',
        ]
        script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        script.chmod(0o755)
    return folder


def cpu_of_jobs(cluster: Cluster) -> float:
    """CPU seconds of all jobs so far, as the accounting knows them."""
    lines = cluster.run("sacct", "-n", "-P", "-X", "--format=TotalCPU").split()
    return sum(
        60 * float(minutes) + float(seconds) for minutes, seconds in (t.split(":")[-2:] for t in lines)
    )


def run(
    python: Path, options: Iterable[str], folder: Path, variables: dict[str, str], timeout: float
) -> float:
    """Wall time in seconds of one workflow."""
    start = time.monotonic()
    answer = subprocess.run(
        [python, "-m", "snakemake", *options], cwd=folder, env=variables, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    if answer.returncode:
        raise SystemExit(f"{' '.join(options)} failed:\n{answer.stdout[-2000:]}{answer.stderr[-4000:]}")
    return time.monotonic() - start


def measure_walls(
    cluster: Cluster, folder: Path, official: Path, repeats: int, before: Path | None
) -> list[str]:
    """20 jobs of 2 s on four slots, all ways in turns, median of some runs each: wall and CPU seconds."""
    python_here = Path(sys.executable)
    ways: dict[str, tuple[Path, list[str]]] = {}
    if before:
        ways[f"submitit, arrays, {before}"] = (python_here, SUBMITIT)
    ways |= {
        COMPARED[0]: (python_here, SUBMITIT),
        COMPARED[1]: (official, TUNED),
        f"local, {SLOTS} cores": (python_here, LOCAL),
        "submitit, single jobs": (python_here, SINGLE),
        "official plugin, default": (official, DEFAULT),
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for number, (name, (python, options)) in enumerate(ways.items()):
            if repeat and name in ONCE:
                continue
            workdir = folder / f"wall{number}-{repeat}"
            make_workflow(workdir, 20, 2)
            variables = environment(cluster, python, folder / "commands")
            variables["PYTHONPATH"] = str(before if before and str(before) in name else PLUGIN)
            cpu_before = cpu_of_jobs(cluster) + own_cpu()
            walls[name].append(run(python, options, workdir, variables, 1200))
            time.sleep(SETTLED_S / 5)  # the accounting hears of the last jobs
            cpus[name].append(cpu_of_jobs(cluster) + own_cpu() - cpu_before)
            print(f"{name}: wall {walls[name][-1]:.1f} s, CPU {cpus[name][-1]:.1f} s", flush=True)
    lines = ["| 20 jobs of 2 s, 4 slots | wall, median | CPU, median | walls |", "|---|---|---|---|"]
    for name, runs in walls.items():
        shown = ", ".join(f"{wall:.1f}" for wall in runs)
        cpu = statistics.median(cpus[name])
        lines.append(f"| {name} | {statistics.median(runs):.1f} s | {cpu:.1f} s | {shown} |")
    ours, theirs = (statistics.median(walls[name]) for name in COMPARED)
    return [*lines, "", f"{COMPARED[0]}: {ours / theirs:.2f} of the wall time of {COMPARED[1]}; goal: 0.5."]


def own_cpu() -> float:
    """CPU seconds of the programs that this one has called: Snakemake's own and Slurm's clients."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_calls(cluster: Cluster, folder: Path, official: Path) -> list[str]:
    """200 jobs of 1 s: how often Slurm is asked."""
    ways = {"submitit, arrays": (Path(sys.executable), SUBMITIT), "official plugin, tuned": (official, TUNED)}
    shown = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "srun")
    lines = [f"| 200 jobs of 1 s | wall | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    for number, (name, (python, options)) in enumerate(ways.items()):
        workdir, counter = folder / f"calls{number}", folder / f"counter{number}"
        make_workflow(workdir, 200, 1)
        wall = run(python, options, workdir, environment(cluster, python, counter), 2400)
        calls = Counter((counter / "calls").read_text().split())
        print(name, f"{wall:.0f} s", dict(calls), flush=True)
        lines.append(f"| {name} | {wall:.0f} s | {' | '.join(str(calls[command]) for command in shown)} |")
    return lines


def measure_controller(cluster: Cluster, folder: Path, official: Path) -> list[str]:
    """Memory and CPU of the controller while 1,000 jobs wait."""
    ways = {
        COMPARED[0]: (Path(sys.executable), [*SUBMITIT, "--submitit-shared-folder-check", "no"]),
        COMPARED[1]: (official, TUNED),
        "official plugin, default": (official, DEFAULT),
    }
    lines = ["| controller with 1,000 queued jobs | submitted after | memory | CPU |", "|---|---|---|---|"]
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    for number, (name, (python, options)) in enumerate(ways.items()):
        workdir = folder / f"controller{number}"
        make_workflow(workdir, QUEUED, 1)
        lines.append(f"| {name} | {watch_controller(cluster, python, options, workdir)} |")
        print(lines[-1], flush=True)
    cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    return lines


def watch_controller(cluster: Cluster, python: Path, options: Iterable[str], workdir: Path) -> str:
    """Start a workflow, wait until all its jobs are in the queue, and look at its controller."""
    start = time.monotonic()
    with (workdir / "log").open("w") as log:
        controller = subprocess.Popen(
            [python, "-m", "snakemake", *options], cwd=workdir, stdout=log, stderr=log,
            env=environment(cluster, python, workdir / "commands"),
        )  # fmt: skip
    try:
        wait_for(lambda: queued(cluster) >= QUEUED, 900, f"{QUEUED} jobs in the queue", interval=1.0)
        submitted = time.monotonic() - start
        time.sleep(SETTLED_S)  # what follows the last submission is no waiting yet
        return f"{submitted:.0f} s | {watch(psutil.Process(controller.pid))}"
    finally:
        controller.kill()
        controller.wait()
        cluster.run("scancel", "--user", str(os.getuid()))
        wait_for(lambda: queued(cluster) == 0, 120, "an empty queue", interval=1.0)


def measure_poller(folder: Path, jobs: int = 10_000, seconds: float = 60.0) -> list[str]:
    """CPU of the controller's poller while many jobs wait and run; squeue's answers are made up."""
    sys.path.insert(0, str(PLUGIN))
    from snakemake_executor_plugin_submitit import queue
    from snakemake_executor_plugin_submitit.backends import SlurmBackend
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings
    from snakemake_executor_plugin_submitit.tracker import Tracker

    from fakes import MadeExecutor, Watched, make_entry, make_job

    ids = [f"{1 + number // 1000}_{number % 1000}" for number in range(jobs)]
    states = ["RUNNING|n1", "PENDING|"]
    lines = [f"{job_id}|{states[len(job_id) % 2]}|train|snakemake-submitit:t|None" for job_id in ids]
    queue.ask = lambda command, timeout=0: "\n".join(lines)  # type: ignore[assignment, misc]
    watched = Watched(folder)
    watched.backend = SlurmBackend(ExecutorSettings(), folder / "jobs", print)  # type: ignore[assignment]
    watched.tracker = Tracker(watched.backend, watched.journal, print)
    executor = MadeExecutor(watched, folder)
    for job_id in ids:
        entry = make_entry(folder, key=job_id, job_id=job_id, outputs=[job_id])
        watched.backend.name_files(entry, job_id)
        watched.journal.write(entry)
        executor._report(make_job(job_id), entry)
    executor.follow()
    time.sleep(SETTLED_S)
    before = time.process_time()
    time.sleep(seconds)
    cpu = 100 * (time.process_time() - before) / seconds
    executor.shutdown()
    return [
        f"Following {jobs} active jobs, one squeue in {ExecutorSettings().poll_seconds} s: "
        f"{cpu:.1f} % of a core; goal: 5."
    ]


def queued(cluster: Cluster) -> int:
    """How many jobs wait, tasks of arrays one by one."""
    return len(cluster.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i").split())


def watch(controller: psutil.Process, seconds: float = 60.0) -> str:
    """Memory and CPU of a process over a minute; the programs it calls count as well."""
    before = sum(controller.cpu_times()[:4])
    time.sleep(seconds)
    cpu = (sum(controller.cpu_times()[:4]) - before) / seconds * 100
    return f"{controller.memory_info().rss / 1e6:.0f} MB | {cpu:.1f} % of a core"


def write(lines: list[str]) -> None:
    """Replace the section "Executor" of the README and keep the others."""
    text = README.read_text() if README.exists() else "# Benchmarks\n"
    section = "## Executor\n\n" + "\n".join(lines) + "\n"
    earlier = re.compile(r"^## Executor\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    text, replaced = earlier.subn(lambda _: section + "\n", text, count=1)
    if not replaced:
        text = f"{text.rstrip()}\n\n{section}"
    README.write_text(text.rstrip() + "\n")


def describe(cluster: Cluster, repeats: int) -> str:
    """Where and with what the figures were measured."""
    version = cluster.run("sinfo", "--version").strip()
    load = os.getloadavg()[0]
    return (
        f"`python benchmarks/executor.py`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {version}, "
        f"one node with {SLOTS} slots, accounting on, official plugin {OFFICIAL.partition('==')[2]}, "
        f"{repeats} runs each in turns, load of the machine before: {load:.1f}."
    )


def main() -> None:
    """Measure and print, or write into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["wall", "calls", "controller", "poller"],
        default=["wall", "calls", "controller", "poller"],
    )
    parser.add_argument("--before", type=Path, help="plugin/src of another tree, measured in turns")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--official", type=Path, default=Path(tempfile.gettempdir()) / "official-slurm-plugin"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.parts == ["poller"]:
            print("\n".join(measure_poller(folder / "poller")))
            return
        official = make_official(options.official)
        with Cluster(folder / "slurm", accounting=True, cpus=SLOTS) as cluster:
            lines = [describe(cluster, options.repeats)]
            if "wall" in options.parts:
                lines += ["", *measure_walls(cluster, folder, official, options.repeats, options.before)]
            if "controller" in options.parts:
                lines += ["", *measure_controller(cluster, folder, official)]
            if "calls" in options.parts:
                lines += ["", *measure_calls(cluster, folder, official)]
        if "poller" in options.parts:
            lines += ["", *measure_poller(folder / "poller")]
    print("\n".join(lines))
    if options.write:
        write(lines)


if __name__ == "__main__":
    main()

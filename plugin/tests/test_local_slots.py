"""Cluster `local` shares the GPUs of a machine: fake slots, real workflows, processes killed in every way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_slots
import psutil
import pytest

from cluster import wait_for
from workflows import Workflow

WORKER = """\
import json, os, pathlib, sys, time
folder, name, gate = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
for device in devices:
    try:
        (folder / f"using-{device}").touch(exist_ok=False)
    except FileExistsError:
        (folder / "clash").touch()
(folder / f"started-{name}").write_text(json.dumps({"pid": os.getpid(), "devices": devices}))
time.sleep(0.5)
while not gate.exists():
    time.sleep(0.1)
for device in devices:
    (folder / f"using-{device}").unlink()
"""

RULES = """\
RUNS = {runs!r}
rule all:
    input: expand("{{run}}.txt", run=RUNS)
rule use:
    output: "{{run}}.txt"
    resources: gpu=1, mem_mb=100, runtime=10
    shell: "{python} worker.py . {{wildcards.run}} gate && touch {{output}}"
"""


@pytest.fixture
def work(make_workflow: Callable[..., Workflow], request: pytest.FixtureRequest) -> Workflow:
    """A workflow whose jobs use fake GPUs that no other test has."""
    names = [f"fake-{os.getpid()}-{request.node.name}-{number}".replace("_", "-") for number in range(3)]
    work = make_workflow(settings={"cluster": "local", "gpus": ",".join(names)})
    (work.folder / "worker.py").write_text(WORKER)
    return work


def write(work: Workflow, count: int) -> list[str]:
    """A Snakefile with so many jobs."""
    runs = [f"job{number}" for number in range(count)]
    work.write(RULES.format(runs=runs, python=sys.executable))
    return runs


def started(work: Workflow, run: str) -> dict[str, object] | None:
    """What a job noted when it got its GPU."""
    path = work.folder / f"started-{run}"
    return json.loads(path.read_text()) if path.exists() and path.read_text() else None


@pytest.mark.slow
def test_eight_jobs_never_share_a_gpu(work: Workflow) -> None:
    runs = write(work, 8)
    (work.folder / "gate").touch()
    work.call().finish()
    assert not (work.folder / "clash").exists()
    gpus = str(work.settings["gpus"]).split(",")
    for run in runs:
        entry = started(work, run)
        assert entry is not None and len(entry["devices"]) == 1  # type: ignore[arg-type]
        assert set(entry["devices"]) <= set(gpus)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["program", "submitit", "controller"])
def test_whatever_is_killed_no_two_jobs_share_a_gpu(work: Workflow, victim: str) -> None:
    runs = write(work, 4)
    controller = work.start("--keep-going")
    wait_for(lambda: any(started(work, run) for run in runs), 60, "a job has started")
    run = next(run for run in runs if started(work, run))
    first = started(work, run)
    assert first is not None
    program = psutil.Process(int(str(first["pid"])))
    if victim == "controller":
        controller.kill()
        work.unlock()
        controller = work.start("--keep-going")
    else:
        process = program if victim == "program" else submitit_process(program)
        process.send_signal(signal.SIGKILL)
        if victim == "submitit":
            assert program.is_running()  # the program goes on, so its GPU must stay taken
        else:
            wait_for(lambda: not program.is_running(), 10, "the program has ended")
            (work.folder / f"using-{first['devices'][0]}").unlink()  # type: ignore[index]
    (work.folder / "gate").touch()
    code = controller.wait(180)
    assert not (work.folder / "clash").exists()
    if victim == "controller":
        assert code == 0, controller.text
        assert started(work, run) == first, "the running job was found again and did not move"
    else:
        assert code != 0 and "job" in controller.text
        work.call().finish()
    assert not (work.folder / "clash").exists()


def submitit_process(program: psutil.Process) -> psutil.Process:
    """submitit's process that waits for a job's program."""
    return next(parent for parent in program.parents() if "submitit.core._submit" in parent.cmdline())


def test_more_gpus_than_there_are_are_refused_before_anything_starts(work: Workflow) -> None:
    write(work, 1)
    text = (work.folder / "Snakefile").read_text().replace("gpu=1", "gpu=4")
    work.write(text)
    controller = work.call()
    assert controller.process.returncode != 0
    assert "gpu=4 is more than this machine offers: fake-" in controller.text
    assert not work.entries()


def test_cores_and_memory_are_dealt_in_parts(tmp_path: Path) -> None:
    kind = f"test-{os.getpid()}"
    try:
        half = gpu_slots.take_share(kind, 3.0, 8.0, 4)
        assert len(half.files) == 2  # 3 of 8 need two of the four parts
        assert half.environment == {}  # and CUDA is shown nothing of them
        rest = gpu_slots.take_share(kind, 4.0, 8.0, 4)
        assert not set(half.files) & set(rest.files)
        half.release()
        rest.release()
        everything = gpu_slots.take_share(kind, 100.0, 8.0, 4)
        assert len(everything.files) == 4  # more than there is: all of it
        everything.release()
        assert gpu_slots.take_share(kind, 0, 8.0, 4).files == ()
    finally:
        for path in gpu_slots.shared_folder().glob(f"gpu-slot*{kind}*"):
            path.unlink()

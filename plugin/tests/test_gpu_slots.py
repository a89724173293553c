"""GPU slots without GPUs: named fake slots are shared by processes that are killed in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_slots
import pytest
from gpu_slots import HELD, SlotError, devices, join, take

WORKER = """
import json, os, pathlib, sys, time
folder, name, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
for device in devices:
    try:
        (folder / f"using-{device}").touch(exist_ok=False)
    except FileExistsError:
        (folder / "clash").touch()
(folder / f"started-{name}").write_text(json.dumps(devices))
time.sleep(seconds)
for device in devices:
    (folder / f"using-{device}").unlink()
"""


@pytest.fixture
def slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Names of fake slots that no other test has; their lock files are removed afterwards."""
    names: list[str] = []

    def make(count: int) -> str:
        names.extend(f"fake-{os.getpid()}-{tmp_path.name}-{number}" for number in range(count))
        return ",".join(names)

    for variable in ("CUDA_VISIBLE_DEVICES", HELD, "SLURM_JOB_ID", gpu_slots.CHOSEN):
        monkeypatch.delenv(variable, raising=False)
    yield make
    for path in gpu_slots.shared_folder().glob(f"gpu-slot-fake-{os.getpid()}-*"):
        path.unlink()


def test_eight_jobs_on_three_slots_never_share_one(tmp_path: Path, slots: Callable[[int], str]) -> None:
    environment = {**os.environ, gpu_slots.CHOSEN: slots(3)}
    jobs = [start(environment, tmp_path, f"job{i}", 0.3) for i in range(8)]
    assert [job.wait(60) for job in jobs] == [0] * 8
    assert not (tmp_path / "clash").exists()
    used = [json.loads(path.read_text()) for path in tmp_path.glob("started-*")]
    assert len(used) == 8
    assert len({name for names in used for name in names}) == 3


def test_a_killed_job_frees_its_slot_and_one_that_left_a_process_behind_does_not(
    tmp_path: Path, slots: Callable[[int], str]
) -> None:
    environment = {**os.environ, gpu_slots.CHOSEN: slots(1)}
    orphan = tmp_path / "orphan"
    script = f"{sys.executable} -c 'import time; time.sleep(60)' & echo $! > {orphan}; wait"
    first = subprocess.Popen([sys.executable, "-m", "gpu_slots", "1", "bash", "-c", script], env=environment)
    wait_until(lambda: orphan.exists() and orphan.read_text().strip())
    first.kill()
    first.wait()
    second = start(environment, tmp_path, "second", 0.0)
    time.sleep(1.5)
    assert not (tmp_path / "started-second").exists(), "a process of the killed job still uses the GPU"
    os.kill(int(orphan.read_text()), signal.SIGKILL)
    assert second.wait(30) == 0
    assert (tmp_path / "started-second").exists()


def test_a_process_that_did_not_inherit_the_locks_joins_them(slots: Callable[[int], str]) -> None:
    chosen = slots(1)
    lease = take(1, {gpu_slots.CHOSEN: chosen})
    locks = join(lease.environment)
    lease.release()  # whoever took the slot is gone; this process, which joined, is not
    folder = gpu_slots.shared_folder()
    assert gpu_slots._take_free(1, chosen.split(","), folder) is None
    for lock in locks:
        os.close(lock)
    freed = gpu_slots._take_free(1, chosen.split(","), folder)
    assert freed is not None
    freed.release()


def test_a_job_that_wants_two_gets_two_or_waits(slots: Callable[[int], str]) -> None:
    chosen = slots(3)
    pair = take(2, {gpu_slots.CHOSEN: chosen})
    assert len(set(pair.devices)) == 2
    assert gpu_slots._take_free(2, chosen.split(","), gpu_slots.shared_folder()) is None
    single = take(1, {gpu_slots.CHOSEN: chosen})
    assert not set(single.devices) & set(pair.devices)
    pair.release()
    single.release()


def test_more_than_exist_is_refused_at_once(slots: Callable[[int], str]) -> None:
    chosen = slots(2)
    with pytest.raises(SlotError, match="3 GPUs are wanted, and this machine offers 2"):
        take(3, {gpu_slots.CHOSEN: chosen})


def test_who_was_handed_gpus_takes_no_more(slots: Callable[[int], str]) -> None:
    chosen = slots(1)
    lease = take(1, {gpu_slots.CHOSEN: chosen})
    assert take(1, {gpu_slots.CHOSEN: chosen, **lease.environment}).devices == ()
    assert take(1, {gpu_slots.CHOSEN: chosen, "SLURM_JOB_ID": "7"}).devices == ()
    lease.release()


LISTING = """GPU 0: NVIDIA A100 (UUID: GPU-aaaa-1)
  MIG 3g.20gb Device 0: (UUID: MIG-11-x)
  MIG 3g.20gb Device 1: (UUID: MIG-22-y)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb-2)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists two GPUs, the first in MIG mode."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("environment", "chosen", "expected"),
    [
        ({}, None, ("MIG-11-x", "MIG-22-y", "GPU-bbbb-2")),
        ({"CUDA_VISIBLE_DEVICES": "1"}, None, ("GPU-bbbb-2",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb-2"}, None, ("GPU-bbbb-2",)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-22-y"}, None, ("MIG-22-y",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, ()),
        ({}, "1,GPU-bbbb", ("GPU-bbbb-2",)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "0,1", ("GPU-bbbb-2",)),
        ({gpu_slots.CHOSEN: "0"}, None, ("MIG-11-x", "MIG-22-y")),
    ],
)
def test_an_index_and_a_uuid_are_one_device(
    machine: None, environment: dict[str, str], chosen: str | None, expected: tuple[str, ...]
) -> None:
    assert devices(environment, chosen) == expected


def test_a_name_that_no_gpu_has_is_refused_with_the_list(machine: None) -> None:
    with pytest.raises(SlotError, match=r"'7' is no GPU of this machine.*0 = MIG-11-x MIG-22-y, 1 = GPU"):
        devices({"CUDA_VISIBLE_DEVICES": "7"})


def test_without_a_folder_of_its_own_the_locks_lie_where_nobody_can_move_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(gpu_slots.FOLDER)
    status = gpu_slots.shared_folder().stat()
    assert status.st_uid == 0 and status.st_mode & 0o1002 == 0o1002


def test_a_lock_file_that_was_put_away_locks_nothing(slots: Callable[[int], str]) -> None:
    chosen = slots(1)
    lease = take(1, {gpu_slots.CHOSEN: chosen})
    lock = gpu_slots._open(lease.files[0])
    assert gpu_slots._is_still(lease.files[0], lock)
    lease.files[0].unlink()
    assert not gpu_slots._is_still(lease.files[0], lock)
    os.close(lock)
    lease.release()


def test_a_link_in_the_shared_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "gpu-slot-x").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        gpu_slots._open(tmp_path / "gpu-slot-x")


def start(environment: dict[str, str], folder: Path, name: str, seconds: float) -> subprocess.Popen[bytes]:
    """A job that notes its GPUs, uses them for a while and ends."""
    program = [sys.executable, "-c", WORKER, str(folder), name, str(seconds)]
    return subprocess.Popen([sys.executable, "-m", "gpu_slots", "1", *program], env=environment)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)

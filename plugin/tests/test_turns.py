"""Jobs of a node start up in turn, and nothing that goes wrong with that keeps a job from running."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit import job as job_module
from snakemake_executor_plugin_submitit import turns
from snakemake_executor_plugin_submitit.job import SnakemakeJob
from snakemake_executor_plugin_submitit.turns import Turn

SHELL_INIT = Path(turns.__file__).with_name("shell_init.sh")


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node on which one job starts up at a time, and nobody waits long."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)


def turns_taken(folder: Path) -> int:
    """How many jobs of this node start up now."""
    taken = 0
    for path in folder.iterdir():
        if path.suffix == ".started":
            continue
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken += 1
    return taken


def test_a_turn_is_over_when_the_rules_shell_begins(tmp_path: Path) -> None:
    turn = Turn(tmp_path, "7")
    turn.end_if_started()
    assert turns_taken(tmp_path) == 1
    environment = {**os.environ, "BASH_ENV": str(SHELL_INIT), turns.STARTED: str(turn.started)}
    shell = subprocess.run(
        ["bash", "-c", f"echo ${turns.STARTED}"], env=environment, capture_output=True, text=True, check=True
    )
    assert shell.stdout == "\n", "the program's own shells have nothing to say"
    turn.end_if_started()
    assert not turns_taken(tmp_path)
    assert not turn.started.exists()


def test_a_rule_without_a_shell_ends_its_turn_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = Turn(tmp_path, "7")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + turns.LONGEST_S + 1)
    turn.end_if_started()
    assert not turns_taken(tmp_path)


def test_no_job_waits_long_for_its_turn(tmp_path: Path) -> None:
    first, second = Turn(tmp_path, "7"), Turn(tmp_path, "8")
    second.end()
    assert turns_taken(tmp_path) == 1, "only the first has one to give back"
    first.end()
    assert not turns_taken(tmp_path)


def test_as_many_start_as_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    held = [Turn(tmp_path, "7"), Turn(tmp_path, "8"), Turn(tmp_path, "9")]
    assert turns_taken(tmp_path) == 2
    held[0].end()
    assert turns_taken(tmp_path) == 1


def test_what_an_earlier_start_of_a_job_has_left_does_not_end_its_turn(tmp_path: Path) -> None:
    (tmp_path / "7.started").touch()
    Turn(tmp_path, "7").end_if_started()
    assert turns_taken(tmp_path) == 1


def test_a_folder_that_cannot_be_used_costs_the_order_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    turn = Turn(tmp_path / "file" / "turns", "7")
    turn.end_if_started()
    turn.end()

    # A file system without locks is found out at once.
    tries: list[int] = []

    def refuse(*_: object) -> None:
        tries.append(1)
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    opened = len(os.listdir("/dev/fd"))
    Turn(tmp_path / "turns", "7").end()
    assert len(os.listdir("/dev/fd")) == opened
    assert len(tries) == 1


def test_a_job_of_slurm_takes_a_turn_and_ends_it(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    start = SnakemakeJob._start

    def look(job: SnakemakeJob) -> subprocess.Popen[bytes]:
        seen.append(turns_taken(tmp_path / "turns"))
        return start(job)

    monkeypatch.setattr(SnakemakeJob, "_start", look)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    # The second shell sees whether the turn ended while the program still runs.
    script = f"bash -c true\nsleep 1\nls {tmp_path}/turns > {tmp_path}/while_it_runs"
    assert make_job(script, cluster="slurm")() == {"exit_code": 0}
    assert seen == [1]
    assert ".started" not in (tmp_path / "while_it_runs").read_text()
    assert not turns_taken(tmp_path / "turns")


def test_a_job_that_is_ended_before_its_program_keeps_no_turn(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait a quarter of an hour to be killed, while the next ones wait for its turn."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = make_job("exit 0", cluster="slurm")
    job._terminated = True
    assert job._run() == 143
    assert turns_taken(tmp_path / "turns") == 0


def test_a_job_without_slurm_shares_cores_by_slots_and_takes_no_turn(
    make_job: Callable[..., SnakemakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(job_module, "Turn", lambda *options: made.append(options))
    assert make_job("exit 0")() == {"exit_code": 0}
    assert made == []

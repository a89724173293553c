"""How a run is started on the GPUs of its job."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fbt_core.errors import UserError
from fbt_core.launch import command, main
from fbt_core.spec import check_frozen
from fbt_core.torchrun import exit_code
from tests.test_core.engine_runs import arguments, make_spec, weights_of, write_images
from tests.test_core.test_distributed_runs import run_together

ROOT = Path(__file__).parents[2]
SRUN = {"SNAKEMAKE_SUBMITIT_LAUNCHER": "srun --overlap --nodes=2 --ntasks=2", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_gpu_or_none_is_one_plain_process(gpus):
    assert command(gpus, ["--spec", "{}"], {}, "n1") == [sys.executable, "-m", "fbt_core.run", "--spec", "{}"]


def test_several_gpus_are_one_torchrun_process_each():
    started = command(8, ["--spec", "{}"], {"SNAKEMAKE_SUBMITIT_LAUNCHER": ""}, "n1")
    assert started[1:5] == ["-m", "fbt_core.torchrun", "--standalone", "--nproc-per-node=8"]
    assert started[5:] == ["-m", "fbt_core.run", "--spec", "{}"]


def test_several_nodes_are_one_torchrun_each_that_meet_on_the_first():
    started = command(8, [], {**SRUN, "SLURM_JOB_ID": "17"}, "n1")
    assert started[:4] == ["srun", "--overlap", "--nodes=2", "--ntasks=2"]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=n1:29417"} <= set(started)


@pytest.mark.parametrize("gpus", ["1", "2"])
def test_torchrun_survives_the_signal_that_its_processes_save_at(monkeypatch, gpus):
    kept = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    handlers = []
    monkeypatch.setattr(os, "execvp", lambda *_: handlers.append(signal.getsignal(signal.SIGUSR2)) or 0)
    try:
        assert main([gpus]) == 0
    finally:
        signal.signal(signal.SIGUSR2, kept)
    assert handlers == [signal.SIG_IGN if gpus == "2" else signal.SIG_DFL]


def test_exit_code_of_several_processes(capsys):
    assert exit_code({0: 75, 1: 75}) == exit_code({0: 75, 1: -signal.SIGTERM}) == 75
    assert exit_code({0: 1, 1: 75}) == exit_code({0: 1, 1: -signal.SIGKILL}) == 1
    assert capsys.readouterr().err == ""
    assert exit_code({0: 75, 3: -signal.SIGKILL}) == 1
    assert "process 3 was killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_interrupted_ends_with_75_and_the_same_command_continues_it(tmp_path):
    """Two processes, the signal sent to the launcher alone."""
    root, spec = write_images(tmp_path / "data"), make_spec(recipe__epochs=6, recipe__normalisation_batch=8)
    assert run_together(arguments(spec, tmp_path / "whole", root), 2) == [0, 0]
    options = arguments(spec, tmp_path / "cut", root, device="cpu", checkpoint_minutes=1e-9)
    started = [sys.executable, "-m", "fbt_core.launch", "2", *options]
    folder = tmp_path / "cut" / spec.id
    with subprocess.Popen(started, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        while not (folder / "last.pt").exists() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGUSR2)
        reported = running.communicate()[1]
    assert running.returncode == 75, reported
    assert "Traceback" not in reported
    assert [line for line in reported.splitlines() if line.startswith("interrupted: SIGUSR2: state saved")]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed at epoch" in (folder / "log.txt").read_text()
    assert weights_of(tmp_path / "cut", spec) == weights_of(tmp_path / "whole", spec)


@pytest.mark.slow
def test_no_process_trains_on_after_torchrun_was_killed(tmp_path):
    root, spec = write_images(tmp_path / "data"), make_spec(recipe__epochs=2000)
    options = arguments(spec, tmp_path / "runs", root, device="cpu", checkpoint_minutes=1e-9)
    started = [sys.executable, "-m", "fbt_core.launch", "2", *options]
    folder = tmp_path / "runs" / spec.id
    with subprocess.Popen(started, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        while not (folder / "last.pt").exists() and running.poll() is None:
            time.sleep(0.02)
        ranks = [rank for rank in psutil.Process(running.pid).children() if "fbt_core.run" in rank.cmdline()]
        running.kill()
    try:
        assert len(ranks) == 2
        assert not psutil.wait_procs(ranks, timeout=30)[1]
    finally:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
    assert "SIGHUP: state saved at epoch" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_torchrun_tells_a_users_error_in_one_line(tmp_path):
    options = arguments(make_spec(), tmp_path, tmp_path / "nowhere", device="cpu")
    started = [sys.executable, "-m", "fbt_core.launch", "2", *options]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr


def test_gpus_that_do_not_divide_by_the_nodes_are_an_error():
    with pytest.raises(UserError, match="7 GPUs cannot be divided by 2 nodes"):
        command(7, [], SRUN, "n1")


def test_the_exit_code_and_the_message_are_the_runs_own():
    started = [sys.executable, "-m", "fbt_core.launch", "0", "--spec", json.dumps({}), "--runs", "x"]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: RunSpec")


def test_without_a_number_of_gpus_it_says_how_it_is_used():
    done = subprocess.run([sys.executable, "-m", "fbt_core.launch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr


def test_what_the_job_reserved_is_kept(monkeypatch):
    from fbt_core.provenance import job

    monkeypatch.setenv("SNAKEMAKE_SUBMITIT_GPUS", "4")
    monkeypatch.setenv("SNAKEMAKE_SUBMITIT_RESTARTS", "2")
    monkeypatch.delenv("SNAKEMAKE_SUBMITIT_JOB_ID", raising=False)
    kept = job()
    assert (kept["gpus_reserved"], kept["restarts"], kept["job_id"]) == (4, 2, None)


def test_a_file_named_after_a_run_must_hold_that_run(tmp_path):
    spec = make_spec()
    check_frozen(spec, tmp_path / "any_name.json")
    check_frozen(spec, tmp_path / f"{spec.id}.json")
    with pytest.raises(UserError, match=f"holds the spec of {spec.id}; the file was changed"):
        check_frozen(spec, tmp_path / f"{spec.id[:-1]}{'0' if spec.id[-1] != '0' else '1'}.json")

"""Submitting, following and ending without Slurm: nothing is lost when the user or the queue interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from snakemake_executor_plugin_submitit import backends, dryrun, executor, probe, queue
from snakemake_executor_plugin_submitit.backends import (
    LocalBackend,
    Look,
    Result,
    SlurmBackend,
    finish_call,
    local_processes,
    sigterm_as_interrupt,
)
from snakemake_executor_plugin_submitit.requests import read_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import Backoff, SlurmBusyError, queue_full
from snakemake_interface_common.exceptions import WorkflowError

from fakes import MadeExecutor, Watched, make_entry, make_job

REQUEST = read_request({}, 1, "rule train")


def following(tmp_path: Path, **settings: Any) -> tuple[Watched, MadeExecutor, threading.Event]:
    """An executor with two jobs whose poller is just waiting for squeue; the event lets squeue answer."""
    watched = Watched(tmp_path, **settings)
    controller = MadeExecutor(watched, tmp_path)
    asked, answer = threading.Event(), threading.Event()

    def squeue() -> None:
        asked.set()
        answer.wait(10)

    watched.backend.refresh = squeue  # type: ignore[method-assign]
    controller.run_jobs([make_job("a"), make_job("b")], announce=False)
    controller.follow()
    assert asked.wait(10)
    assert controller.active_jobs == [], "Snakemake's own list is empty while the poller works"
    return watched, controller, answer


def states(watched: Watched) -> list[str]:
    """What the journal says."""
    return [entry.state for entry in watched.journal.entries()]


def test_ctrl_c_while_squeue_is_asked_leaves_jobs_and_scripts(tmp_path: Path) -> None:
    watched, controller, answer = following(tmp_path)
    threading.Timer(0.2, answer.set).start()
    controller.cancel()
    assert (
        "2 submitted jobs go on; the same command finds them again. To cancel them: scancel 1"
        in watched.said[-1]
    )
    assert states(watched) == ["PENDING", "PENDING"]
    assert all(Path(entry.script).exists() for entry in watched.journal.entries())


def test_ctrl_c_while_squeue_is_asked_cancels_jobs(tmp_path: Path) -> None:
    """And the poller does not call them running afterwards."""
    watched, controller, answer = following(tmp_path, on_interrupt="cancel")
    threading.Timer(0.2, answer.set).start()
    controller.cancel()
    assert sorted(watched.backend.cancelled) == ["1_0", "1_1"]
    assert states(watched) == ["CANCELLED", "CANCELLED"]
    assert not any("go on" in line for line in watched.said)


def test_poller_that_fails_leaves_jobs_and_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "LONGEST_FAILURE_S", -1.0)
    watched, controller, answer = following(tmp_path)
    watched.tracker.judge = lambda entry: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    answer.set()
    controller.wait_thread.join(10)
    assert isinstance(controller.crashes[0], ZeroDivisionError)
    controller.shutdown()
    assert "2 submitted jobs go on" in watched.said[-1]
    assert all(Path(entry.script).exists() for entry in watched.journal.entries())


def test_disk_errors_do_not_end_the_controller_at_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    controller = MadeExecutor(watched, tmp_path)
    controller.run_jobs([make_job("a")], announce=False)
    watched.tracker.judge = full_disk  # type: ignore[method-assign]
    for _ in range(100):
        assert asyncio.run(one_round(controller)) == controller.active_jobs
    assert len(watched.said) == 1
    watched.tracker.judge = lambda entry: None  # type: ignore[method-assign]
    asyncio.run(one_round(controller))
    assert controller._failing_since is None


def test_poller_starts_before_the_executor_is_made() -> None:
    """Snakemake starts it first of all: with nothing to follow it needs nothing."""

    async def round_of(controller: executor.Executor) -> list[Any]:
        return [info async for info in controller.check_active_jobs([])]

    assert asyncio.run(round_of(object.__new__(executor.Executor))) == []


def full_disk(entry: Any) -> None:
    """What the journal meets."""
    raise OSError("no space left")


async def one_round(controller: MadeExecutor) -> list[Any]:
    """What the poller does every half second."""
    return [info async for info in controller.check_active_jobs(controller.active_jobs)]


def test_scripts_are_removed_when_all_jobs_have_ended(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    controller = MadeExecutor(watched, tmp_path)
    controller.run_jobs([make_job("a")], announce=False)
    watched.entry = next(iter(controller.followed.values()))
    Path(str(watched.entry.record)).write_text('{"submitted": 1, "exit_code": 0}')
    assert not controller._ended(controller.active_jobs[0])
    watched.backend.answer = Look("COMPLETED", True)
    assert not controller._ended(controller.active_jobs[0])
    watched.now += 70
    assert controller._ended(controller.active_jobs[0])
    controller.follow()
    controller.shutdown()
    assert not Path(watched.entry.script).exists()


def test_ctrl_c_between_sbatch_and_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are in the queue under their mark: they are found there, reported, or cancelled."""
    watched = Watched(tmp_path, on_interrupt="cancel")
    controller = MadeExecutor(watched, tmp_path)

    def interrupted(*_: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(watched.backend, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        controller.run_jobs([make_job("a")], announce=False)
    watched.backend.found = "12"
    controller.follow()
    controller.cancel()
    assert watched.backend.cancelled == ["12"]
    assert states(watched) == ["CANCELLED"]


def test_ctrl_c_waits_for_sbatch_which_does_not_hear_it() -> None:
    done = []

    def submit() -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        child = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); sys.exit(7)"
        done.append(subprocess.run([sys.executable, "-c", child], check=False).returncode)
        return []

    with pytest.raises(KeyboardInterrupt):
        finish_call(submit)
    assert done == [7]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_are_heard_while_sbatch_hangs(tmp_path: Path, number: signal.Signals) -> None:
    """It has some time to end, then it is killed: what came of it is asked of squeue."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    sbatch.chmod(0o755)
    ended = threading.Event()

    def submit() -> list[str]:
        subprocess.run([sbatch], check=False)
        ended.set()
        return []

    threading.Timer(0.5, os.kill, [os.getpid(), number]).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        finish_call(submit, patience=0.5)
    assert time.monotonic() - start < 20
    assert ended.wait(10), "sbatch is gone"


def test_interrupts_are_heard_while_submitting_is_tried_again(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm does not answer: Snakemake's own handler of SIGTERM would only be seen after the submission."""

    def busy(*_: Any) -> list[str]:
        raise SlurmBusyError("sbatch: timed out")

    monkeypatch.setattr(slurm, "_submit_once", busy)
    answering(monkeypatch, squeue=SlurmBusyError("no"))
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            slurm.submit([], REQUEST, "train", "t")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM], "its own handler is back"


@pytest.mark.parametrize(
    "message",
    [
        "AssocMaxSubmitJobLimit",
        "QOSMaxSubmitJobPerUserLimit",
        "AssocGrpSubmitJobsLimit",
        "QOSGrpSubmitJobsLimit",
    ],
)
def test_full_queue_is_recognised(message: str) -> None:
    assert queue_full(
        f"sbatch: error: {message}\nsbatch: error: Batch job submission failed: Job violates ..."
    )
    assert not queue_full("sbatch: error: Batch job submission failed: Invalid qos specification")


def test_queue_that_takes_no_job_at_all_is_a_refusal(tmp_path: Path) -> None:
    """Nothing in the queue will ever make room."""
    watched = Watched(tmp_path)
    watched.backend.room = 0
    controller = MadeExecutor(watched, tmp_path)
    controller.run_jobs([make_job(f"o{number}") for number in range(10)], announce=False)
    assert watched.backend.chunks == [10, 5, 2, 1]
    assert [ok for ok, _ in controller.ended] == [False] * 10
    assert set(states(watched)) == {"FAILED"}
    assert controller.followed == {}


def test_last_jobs_wait_until_others_have_left_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path)
    watched.backend.room = 2
    controller = MadeExecutor(watched, tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: setattr(watched.backend, "room", 2))
    controller.run_jobs([make_job(f"o{number}") for number in range(6)], announce=False)
    assert (len(controller.active_jobs), controller.ended) == (6, [])
    assert watched.backend.chunks[:3] == [6, 3, 1]
    assert len(controller.followed) == 6
    assert any("your share of the queue is full" in line for line in watched.said)


@pytest.fixture
def slurm(tmp_path: Path) -> SlurmBackend:
    """The real backend; a test sets what Slurm's commands answer."""
    backend = SlurmBackend(ExecutorSettings(signal_seconds=120), tmp_path / "jobs", lambda line: None)
    backend.accounting = True
    return backend


def answering(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> list[list[str]]:
    """Slurm's commands answer this; the list shows what was asked."""
    calls: list[list[str]] = []

    def ask(command: list[str], timeout: float = 0) -> str:
        calls.append(list(command))
        answer = answers[command[0]]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    for module in (queue, backends):
        monkeypatch.setattr(module, "ask", ask)
    return calls


def test_one_sacct_tells_how_many_cancelled_jobs_have_ended(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    slurm.queue.clock = slurm._accounting.clock = lambda: now[0]
    lines = "".join(f"7_{number}|CANCELLED|n1|train||None\n" for number in range(9))
    calls = answering(
        monkeypatch, squeue=lines, sacct="7_0|CANCELLED by 0|train\n7_1|RUNNING|train\n7_2|COMPLETING|train\n"
    )
    entries = [make_entry(tmp_path, job_id=f"7_{number}") for number in range(9)]
    for _ in range(2):
        slurm.refresh()
        assert all(slurm.look(entry) for entry in entries)
    assert [call[0] for call in calls] == ["squeue", "sacct"]
    assert slurm.look(entries[0]).by_whom == "0"  # type: ignore[union-attr]
    assert slurm._accounting.end_of("7_1") == queue.End(), "only an end is kept"
    for second in range(1000):
        now[0] = float(second)
        slurm.refresh()
    assert len([call for call in calls if call[0] == "sacct"]) <= 11


def test_accounting_knows_the_job_that_squeue_has_forgotten(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    slurm.queue.clock = slurm._accounting.clock = lambda: now[0]
    answering(monkeypatch, squeue="8|RUNNING|n1|train||None\n", sacct="7|NODE_FAIL|train\n")
    entry, looks = make_entry(tmp_path), []
    for second in range(0, 60, 5):
        now[0] = float(second)
        slurm.refresh()
        looks.append(slurm.look(entry))
    assert looks[0] is None
    assert looks[-1] == Look("NODE_FAIL", True)


def test_without_a_trace_a_job_is_lost(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    slurm.queue.clock = slurm._accounting.clock = lambda: now[0]
    answering(monkeypatch, squeue="", sacct="")
    for second in range(0, 100, 10):
        now[0] = float(second)
        slurm.refresh()
        look = slurm.look(make_entry(tmp_path))
    assert look == Look("LOST", True)


def test_submission_without_an_answer_is_looked_for_before_it_is_repeated(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue is silent too at first; then it shows one task of the array, the other has ended already."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    tries = []

    def submit_once(*_: Any) -> list[str]:
        tries.append(1)
        raise SlurmBusyError("sbatch: timed out")

    restored: list[str] = []
    monkeypatch.setattr(slurm, "_submit_once", submit_once)
    monkeypatch.setattr(slurm, "restore_function", lambda job_id, job, request: restored.append(job_id))
    answering(monkeypatch, squeue=[SlurmBusyError("no"), "9_1|RUNNING|n1|train|snakemake-submitit:t|None\n"])
    jobs: Any = [None, None]
    assert slurm.submit(jobs, REQUEST, "train", "t") == restored == ["9_0", "9_1"]
    assert len(tries) == 1


def test_jobs_are_found_by_their_mark_in_the_last_answer(
    slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = answering(monkeypatch, squeue="9_1|RUNNING|n1|train|snakemake-submitit:t|None\n")
    with pytest.raises(SlurmBusyError):
        slurm.find(make_entry(tmp_path, index=1))
    slurm.refresh()
    assert slurm.find(make_entry(tmp_path, index=1)) == "9_1"
    assert slurm.find(make_entry(tmp_path, index=0)) is None
    assert len(calls) == 1


@pytest.mark.parametrize("make", [SlurmBackend, LocalBackend])
def test_time_limit_shorter_than_its_warning_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    backend = make(ExecutorSettings(signal_seconds=120), tmp_path, lambda line: None)
    backend.facts = queue_of_one_partition()
    assert backend.problems(read_request({"runtime": 3}, 1, "r")) == []
    assert "runtime: 2 minutes are over before the warning 120 s ahead" in backend.problems(
        read_request({"runtime": 2}, 1, "r")
    )[0]  # fmt: skip


@pytest.mark.parametrize("make", [SlurmBackend, LocalBackend])
def test_a_job_that_needs_longer_to_save_is_warned_earlier(make: Callable[..., Any], tmp_path: Path) -> None:
    backend = make(ExecutorSettings(signal_seconds=120), tmp_path, lambda line: None)
    backend.facts = queue_of_one_partition()
    requests = [read_request({"runtime": 4, **asked}, 1, "r") for asked in ({}, {"signal_seconds": 200})]
    assert [backend.signal_seconds(request) for request in requests] == [120, 200]
    assert backend.signal_seconds(read_request({"signal_seconds": 60}, 1, "r")) == 120
    late = read_request({"runtime": 3, "signal_seconds": 200}, 1, "r")
    assert "3 minutes are over before the warning 200 s ahead" in backend.problems(late)[0]
    if make is SlurmBackend:
        texts = [
            backend.executor(request, "r", "t", 1)._make_submission_file_text("true", "t")
            for request in requests
        ]
        assert ["--signal=USR2@120" in texts[0], "--signal=USR2@200" in texts[1]] == [True, True]


def queue_of_one_partition() -> Any:
    """What Slurm says of a small cluster."""
    from snakemake_executor_plugin_submitit.slurm import ClusterFacts, read_partitions

    return ClusterFacts(read_partitions("main*|infinite|n/a|up|gpu:2|8|16000|1\n"), 1001, accounting=False)


def test_silence_is_no_refusal_of_a_rule(slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(request: Any, rule: str) -> str:
        raise SlurmBusyError("sbatch: timed out")

    said: list[str] = []
    monkeypatch.setattr(slurm, "try_submission", silent)
    assert dryrun.try_submissions(slurm, {REQUEST: "train"}, said.append) == []
    assert "nobody knows" in said[0]


def test_function_of_a_job_is_written_whole(slurm: SlurmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, the controller leaves no half pickle for the job that waits for it."""
    from submitit.core.utils import DelayedSubmission

    def half(self: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(DelayedSubmission, "dump", half)
    with pytest.raises(KeyboardInterrupt):
        slurm.restore_function("7", print, REQUEST)  # type: ignore[arg-type]
    assert not slurm.paths("7").submitted_pickle.exists()


def test_process_numbers_are_used_again(tmp_path: Path) -> None:
    """Neither an old result nor a younger process of the same number is taken for the job."""
    marker = ["submitit.local._local", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", *marker]) as process:
        started = psutil.Process(process.pid).create_time()
        entry = make_entry(tmp_path, job_id=str(process.pid), submitted=started - 1)
        assert local_processes(entry, tmp_path)
        assert not local_processes(entry, tmp_path / "other")
        entry.submitted = started - 3600
        assert not local_processes(entry, tmp_path)
        process.kill()


def test_local_job_starts_without_an_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from submitit.local.local import LocalExecutor

    backend = LocalBackend(ExecutorSettings(), tmp_path, lambda line: None)
    backend.paths("7").result_pickle.touch()
    monkeypatch.setattr(LocalExecutor, "submit", lambda self, job: SimpleNamespace(job_id="7"))
    job: Any = None
    assert backend.submit([job], REQUEST, "train", "t") == ["7"]
    assert not backend.paths("7").result_pickle.exists()


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory" in str(probe.unwritable(tmp_path / "file" / "folder"))
    assert probe.unwritable(tmp_path / "folder") is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("folder-missing n1\n", "is not shared with node n1"),
        ("folder-readonly n1\n", "cannot be written by node n1"),
        ("", None),
    ],
)
def test_node_looks_at_the_folder_and_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, words: str | None
) -> None:
    monkeypatch.setattr(probe, "ask_node", lambda *_: answer)
    problem = probe.shared_folder_problem(tmp_path, REQUEST)
    assert problem is None if words is None else words in str(problem)
    assert list(tmp_path.iterdir()) == []


def test_what_the_node_does_works_in_any_shell(tmp_path: Path) -> None:
    def look(path: Path) -> str:
        return subprocess.run(["sh", "-c", probe.LOOK, str(path)], capture_output=True, text=True).stdout

    (tmp_path / "probe").touch()
    assert look(tmp_path / "probe") == ""
    assert (tmp_path / "probe.node").exists()
    (tmp_path / "probe.node").unlink()
    (tmp_path / "probe.node").symlink_to(tmp_path / "nowhere" / "file")
    assert look(tmp_path / "probe").startswith("folder-readonly ")
    assert look(tmp_path / "missing").startswith("folder-missing ")


def test_missing_submitit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(WorkflowError, match=r"submitit cannot be imported .*: pip install submitit"):
        executor.require_submitit()


def test_result_of_a_job_can_be_read_while_it_is_written(slurm: SlurmBackend, tmp_path: Path) -> None:
    """Half a result is none yet."""
    entry = make_entry(tmp_path)
    Path(str(entry.result)).write_bytes(b"\x80\x05")
    assert slurm.result(entry) is None
    assert Result(None).error is None
    assert Backoff().failed() == 2.0

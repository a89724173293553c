"""The plugin's parts without Slurm: requests, Slurm's answers, the journal, messages and verdicts."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit import controller, messages, queue, slurm, workflow_jobs
from snakemake_executor_plugin_submitit.backends import Look, Result
from snakemake_executor_plugin_submitit.job import RuleError, SnakemakeJob, TooManyTimeoutsError
from snakemake_executor_plugin_submitit.journal import Journal, make_key
from snakemake_executor_plugin_submitit.messages import explain_failure, explain_reason, last_lines
from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.requests import IGNORE_SIGNALS, RequestError, read_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings, setting_problems
from snakemake_executor_plugin_submitit.workflow_jobs import title_of

from fakes import Watched, make_entry

SINFO = """\
main*|infinite|n/a|up|gpu:2(S:0-1)|8+|16000|3
main*|infinite|n/a|up|(null)|16|8000|2
short|10:00|5:00|up|gpu:a100:4,gpu:v100:1|64|512000+|4
"""


def test_request_reads_snakemakes_resources() -> None:
    resources = {
        "runtime": 90,
        "mem_mb": 4000,
        "gpus": 2,
        "nodes": 2,
        "slurm_extra": "--exclude=n3 --exclusive",
        "tmpdir": "/tmp",
    }
    request = read_request(resources, 4, "rule train")
    assert (request.runtime, request.cpus, request.gpus_per_node, request.tasks) == (90, 4, 1, 2)
    assert request.options() == {"ntasks": "2", "exclude": "n3", "exclusive": True, "gpus-per-node": "1"}
    shape = "--nodes=2 --ntasks=2 --cpus-per-task=4"
    assert request.launcher == f"srun --overlap --mem=0 {shape} /bin/sh {IGNORE_SIGNALS}"


@pytest.mark.parametrize(
    ("resources", "part"),
    [
        ({"runtim": 5}, "did you mean 'runtime'?"),
        ({"runtime": 0}, "runtime=0 must be 1 or more"),
        ({"runtime": "soon"}, "'soon' is not a number"),
        ({"runtime": float("inf")}, "must be 1 or more"),
        ({"gpu": 1, "gpus": 2}, "gpus=2 contradicts gpu=1"),
        ({"gpu": 3, "nodes": 2}, "cannot be shared evenly"),
        ({"gpu_model": "a100"}, "how many?"),
        ({"mem_mb": 5, "mem_mb_per_cpu": 5}, "exclude each other"),
        ({"cpus": 2}, "less than the rule's threads=4"),
        ({"nodes": 3, "tasks": 2}, "tasks=2 is less than nodes=3"),
        ({"slurm_extra": "--time=5"}, "use the resource 'runtime'"),
        ({"slurm_extra": "--array=1-3"}, "the plugin needs for itself"),
        ({"slurm_extra": "--gres=gpu:2"}, "use the resource 'gpu'"),
        ({"slurm_extra": "--gpus-per-task=1"}, "use the resource 'gpu'"),
        ({"slurm_extra": "exclude=n1"}, "write 'exclude=n1' as --option"),
        ({"slurm_extra": "'--a"}, "cannot be read"),
    ],
)
def test_request_errors_say_what_and_how(resources: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError) as error:
        read_request(resources, 4, "rule train")
    assert part in str(error.value)
    assert all(line.startswith("rule train: ") for line in error.value.problems)


def test_request_reports_all_problems_at_once() -> None:
    with pytest.raises(RequestError) as error:
        read_request({"runtime": -1, "gpu": -1, "partition": "x"}, 1, "rule train")
    assert len(error.value.problems) == 3


def test_resources_of_the_workflow_itself_are_no_error() -> None:
    assert read_request({"plots": 1}, 1, "rule plot", declared=["plots"]).gpu == 0


@given(
    st.dictionaries(
        st.text(max_size=8), st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=8))
    )
)
def test_any_resources_give_a_request_or_a_request_error(resources: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        read_request(resources, 1, "rule any")


def test_partitions_and_limits() -> None:
    facts = slurm.ClusterFacts(slurm.read_partitions(SINFO), 1001, accounting=False)
    assert facts.partitions["short"].gpus == {"a100": 4, "v100": 1}
    assert facts.partitions["short"].mem_mb == 512000
    assert facts.minutes(read_request({"slurm_partition": "short"}, 1, "r")) == 5
    assert facts.minutes(read_request({}, 1, "r")) is None
    problems = facts.problems(read_request({"gpu": 5, "slurm_partition": "short", "runtime": 11}, 65, "r"))
    assert len(problems) == 3
    assert (
        "types: a100, v100"
        in facts.problems(read_request({"gpu": 1, "gpu_model": "h100", "slurm_partition": "short"}, 1, "r"))[
            0
        ]
    )
    assert not facts.problems(read_request({"gpu": 2}, 1, "r"))
    assert not facts.problems(read_request({"nodes": 5}, 1, "r"))
    assert "nodes: 6 asked, but partition 'main' has only 5" in facts.problems(
        read_request({"nodes": 6}, 1, "r")
    )
    misspelt = facts.problems(read_request({"slurm_partition": "main,shrot"}, 1, "r"))
    assert misspelt == ["partition 'shrot' does not exist (did you mean 'short'?); valid are main, short"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("n/a", None),
        ("10:00", 10),
        ("1:30:00", 90),
        ("2-00:00:00", 2880),
        ("0:30", 1),
        ("30", 30),
    ],
)
def test_slurms_times(text: str, minutes: int | None) -> None:
    assert slurm.read_minutes(text) == minutes


@pytest.mark.parametrize(
    ("message", "busy"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: nowhere", False),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            False,
        ),
    ],
)
def test_busy_is_not_refused(message: str, busy: bool) -> None:
    assert isinstance(slurm.classify(message, "sbatch"), slurm.SlurmBusyError) is busy


def test_queue_lines() -> None:
    answer = (
        "12_3|RUNNING|n1|train|snakemake-submitit:ab|None\n13_[0-2,5%4]|PENDING||train|x|Priority\n"
        "14|FAILED|n2|train||NonZeroExitCode\n"
    )
    lines = {line.job_id: line for line in queue.read_lines(answer)}
    assert set(lines) == {"12_3", "13_0", "13_1", "13_2", "13_5", "14"}
    assert lines["14"].ended
    assert not lines["13_5"].ended


def test_queue_backs_off_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said, calls = [0.0], [], []

    def silent(command: Any, timeout: float = 0) -> str:
        calls.append(now[0])
        raise slurm.SlurmBusyError("squeue: no answer")

    monkeypatch.setattr(queue, "ask", silent)
    asked = queue.Queue(5, said.append, clock=lambda: now[0])
    for second in range(200):
        now[0] = float(second)
        asked.refresh()
    assert len(said) == 1
    assert len(calls) < 10
    monkeypatch.setattr(queue, "ask", lambda *_: "")
    now[0] = 500.0
    assert asked.refresh()
    assert said[-1] == "Slurm answers again."


def test_journal_keeps_what_it_is_given(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = make_entry(tmp_path)
    journal.write(entry)
    assert journal.read("k") == entry
    (tmp_path / "broken.json").write_text('{"key": ')
    (tmp_path / "other.json").write_text("[]")
    assert list(journal.entries()) == [entry]
    content = json.loads(journal.path("k").read_text())
    journal.path("k").write_text(json.dumps({**content, "from_the_future": 1}))
    assert journal.read("k") == entry


def test_keys_follow_outputs_not_numbers() -> None:
    assert make_key(["b", "a"], "train", {}) == make_key(["a", "b"], "other", {"x": "1"})
    assert make_key([], "train", {"x": "1"}) != make_key([], "train", {"x": "2"})


def test_node_failure_is_followed(tmp_path: Path) -> None:
    """NODE_FAIL is no verdict while Slurm may start the job again."""
    watched = Watched(tmp_path)
    assert watched.judge(Look("RUNNING")) is None
    assert watched.judge(Look("NODE_FAIL", True)) is None
    assert watched.judge(Look("NODE_FAIL", True), after=30) is None
    assert watched.judge(Look("PENDING", reason="BeginTime")) is None
    assert "was requeued" in watched.said[0]
    assert watched.judge(Look("RUNNING")) is None
    assert watched.judge(Look("NODE_FAIL", True)) is None
    verdict = watched.judge(Look("NODE_FAIL", True), after=61)
    assert (verdict.ok, verdict.state) == (False, "NODE_FAIL")


def test_silence_is_no_verdict(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for _ in range(100):
        assert watched.judge(None, after=60) is None


def test_result_beats_the_queue(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.backend.left = Result("Traceback ... RuleError: exit code 3")
    assert watched.judge(Look("FAILED", True)).state == "FAILED"
    watched.backend.left = Result("TooManyTimeoutsError: met 3 times")
    assert watched.judge(Look("FAILED", True)).state == "TIMEOUT"
    watched.backend.left = Result(None)
    assert watched.judge(Look("RUNNING")).ok


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED"])
def test_slurm_names_the_end_of_a_job_that_has_left_an_error(tmp_path: Path, state: str) -> None:
    """With cgroups the job's own error is there before squeue shows OUT_OF_MEMORY."""
    watched = Watched(tmp_path)
    watched.backend.left = Result("Traceback ... RuleError: exit code 137")
    assert watched.judge(Look("RUNNING")) is None
    assert watched.judge(None, after=0.5) is None
    assert watched.backend.hurries == 1
    assert watched.judge(Look(state, True)).state == state
    assert watched.backend.left is None, "a result that was judged must not be met again"


def test_error_of_an_earlier_start_is_no_verdict(tmp_path: Path) -> None:
    """Slurm has the job in its queue again: what it left before counts no more."""
    watched = Watched(tmp_path)
    watched.backend.left = Result("Traceback ... RuleError: exit code 1")
    assert watched.judge(Look("RUNNING")) is None
    assert watched.judge(Look("PENDING", reason="BeginTime"), after=20) is None
    assert watched.judge(Look("PENDING", reason="BeginTime"), after=200) is None
    assert watched.judge(Look("RUNNING"), after=1) is None
    watched.backend.left = None  # the job has begun
    assert watched.judge(Look("RUNNING"), after=100) is None
    watched.backend.left = Result("Traceback ... RuleError: exit code 1")
    assert watched.judge(Look("RUNNING")) is None
    assert watched.judge(Look("RUNNING"), after=31).state == "FAILED", "Slurm need not report it"


def test_job_that_has_ended_well_is_never_reported_failed(tmp_path: Path) -> None:
    """Its record says so, whatever became of its result and whatever Slurm calls its end."""
    watched = Watched(tmp_path)
    JobRecord(submitted=1.0, ended=60.0, exit_code=0).save(Path(watched.entry.record))
    assert watched.judge(Look("CANCELLED", True)) is None
    assert watched.judge(Look("CANCELLED", True), after=10).ok
    assert watched.entry.state == "COMPLETED"


def test_missing_result_has_time_to_appear(tmp_path: Path) -> None:
    """A completed job whose result never comes has failed, and is not taken for completed later."""
    watched = Watched(tmp_path)
    assert watched.judge(Look("COMPLETED", True)) is None
    assert watched.judge(Look("COMPLETED", True), after=64) is None
    verdict = watched.judge(Look("COMPLETED", True), after=2)
    assert not verdict.ok
    assert "no result was written" in verdict.message
    assert (verdict.state, watched.entry.state) == ("FAILED", "FAILED")
    assert not watched.judge(Look("COMPLETED", True), after=1)


def test_reason_is_reported_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for _ in range(5):
        watched.judge(Look("PENDING", reason="AssocGrpGRES"))
        watched.tracker.report_waiting()
    watched.judge(Look("PENDING", reason="Priority"))
    watched.tracker.report_waiting()
    assert len(watched.said) == 1
    assert "AssocGrpGRES (a limit of your account" in watched.said[0]


def test_reasons_are_explained() -> None:
    assert "scontrol release" in explain_reason("launch failed requeued held")
    assert "down, drained" in explain_reason("ReqNodeNotAvail, UnavailableNodes:n1")
    assert explain_reason("SomethingNew") == "SomethingNew"


def test_log_shows_the_programs_own_lines(tmp_path: Path) -> None:
    log = tmp_path / "err"
    log.write_text(
        "SNAKEMAKE\n=========\n  Date: x\n\nBuilding DAG of jobs...\nExecute 1 jobs...\n\n[x]\nlocalrule a:\n"
        "    resources: tmpdir=/tmp\nTraceback (most recent call last):\n  File x\n"
        "ValueError: bad learning rate\n"
        "RuleException:\nCalled ...\nAt least one job did not complete successfully.\n"
        "submitit ERROR (2026) - Submitted job triggered an exception\nTraceback (most recent call last):\n"
        "  File y\nsnakemake_executor_plugin_submitit.job.RuleError: exit code 1\n"
        "srun: error: n1: task 0: Exited with exit code 1\n"
    )
    assert last_lines(str(log)) == [
        "Traceback (most recent call last):",
        "  File x",
        "ValueError: bad learning rate",
    ]
    message = explain_failure(make_entry(tmp_path, exit_code=1), "FAILED", None)
    assert "train run=one: its command failed with exit code 1 (FAILED)" in message
    assert "| ValueError: bad learning rate" in message


def test_of_a_huge_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"SNAKEMAKE\n=========\n" + b"\xff" * 10_000 + b"\nValueError: the cause\n")
    monkeypatch.setattr(messages, "LONGEST_LOG", 100)
    first, last = last_lines(str(log))
    assert (len(first), last) == (100 - len("\nValueError: the cause\n"), "ValueError: the cause")


def test_out_of_memory_is_recognised_behind_failed(tmp_path: Path) -> None:
    (tmp_path / "err").write_text(
        "slurmstepd: error: Step 1.0 exceeded memory limit (500 > 400), being killed\n"
    )
    entry = make_entry(tmp_path, resources={"mem_mb": 400})
    record = JobRecord(submitted=0.0, peak_memory_mb=398.0)
    message = explain_failure(entry, "FAILED", record)
    assert "out of memory (OUT_OF_MEMORY): its limit was mem_mb=400" in message
    assert "the largest use seen by the job itself was 398 MB" in message


def test_gpu_memory_is_not_the_hosts(tmp_path: Path) -> None:
    """torch's own words must not send anybody to mem_mb, and a program's words do not name Slurm's state."""
    entry = make_entry(tmp_path, resources={"mem_mb": 400}, exit_code=1)
    (tmp_path / "err").write_text(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. GPU 0\n"
    )
    message = explain_failure(entry, "FAILED", None)
    assert "its GPU had too little memory (exit code 1, FAILED): use more GPUs, gradient acc" in message
    assert "mem_mb" not in message
    (tmp_path / "err").write_text("my own words about Out Of Memory\n")
    assert "its command failed with exit code 1" in explain_failure(entry, "FAILED", None)
    (tmp_path / "err").write_text("slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=7.0\n")
    assert "out of memory" in explain_failure(entry, "FAILED", None)
    assert "cancelled (CANCELLED)" in explain_failure(entry, "CANCELLED", None)
    assert "met its time limit" in explain_failure(entry, "TIMEOUT", None)


def test_time_limits_are_told_apart(tmp_path: Path) -> None:
    """One limit too many for a program that saves, or a program that does not end at the signal."""
    entry = make_entry(tmp_path, resources={"runtime": 60}, timeouts=3, restarts=2, exit_code=75)
    assert "3 times (TIMEOUT after 2 requeues)" in explain_failure(entry, "TIMEOUT", None)
    ignoring = make_entry(tmp_path, resources={"runtime": 60}, timeouts=1)
    assert "without ending at the warning signal" in explain_failure(ignoring, "TIMEOUT", None)


def test_settings_are_checked() -> None:
    assert setting_problems(ExecutorSettings()) == []
    wrong = ExecutorSettings(cluster="locl", max_timeouts=-1)
    assert "did you mean 'local'?" in "\n".join(setting_problems(wrong))
    assert len(setting_problems(wrong)) == 2


def test_stale_lock_is_named_with_its_restore(tmp_path: Path) -> None:
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    folder = tmp_path / controller.FOLDER
    folder.mkdir()
    assert controller.explain_lock(tmp_path) is None
    (tmp_path / ".snakemake" / "locks" / "0.input.lock").touch()
    controller.note_controller(folder)
    assert "another snakemake works in this folder" in str(controller.explain_lock(tmp_path))
    gone = {"pid": 2**22 - 1, "host": socket.gethostname(), "started": 1.0}
    (folder / "controller.json").write_text(json.dumps(gone))
    assert "stale" in str(controller.explain_lock(tmp_path))
    assert "snakemake --unlock" in str(controller.explain_lock(tmp_path))
    (folder / "controller.json").write_text(json.dumps({**gone, "host": "elsewhere"}))
    assert "elsewhere" in str(controller.explain_lock(tmp_path))


def test_record_counts_waiting_over_all_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    record = JobRecord(submitted=90.0)
    record.start("n1", "7")
    now[0] = 160.0
    record.interrupt("time limit")
    record.seen()
    now[0] = 200.0
    record.start("n2", "7")
    now[0] = 230.0
    record.end(0)
    assert (record.queue_wait_s, record.restarts, record.timeouts, record.run_s) == (50.0, 1, 1, 90.0)


def test_a_task_of_an_array_shows_its_own_name(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    # A Slurm that refuses costs the name alone.
    assert make_job("exit 0", title="train-a")() == {"exit_code": 0}
    assert (tmp_path / "asked").read_text() == "update JobId=12_3 JobName=train-a\n"
    assert make_job("exit 0")() == {"exit_code": 0}
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_a_jobs_name_is_its_rule_and_wildcards_in_characters_that_slurm_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = SimpleNamespace(
        name="train", wildcards_dict={"run": "a-kd-b", "part": "1 of 2; x"}, is_group=lambda: False
    )
    assert title_of(job) == "train-a-kd-b-1_of_2_x"
    # A workflow may say what people call a value; whatever is in its file, jobs are submitted.
    for content, title in (
        ('{"a-kd-b": "table2/kd, seed 0"}', "train-a-kd-b_table2_kd_seed_0-1_of_2_x"),
        ('["a-kd-b"]', "train-a-kd-b-1_of_2_x"),
        ("{", "train-a-kd-b-1_of_2_x"),
    ):
        workflow_jobs.NAMES_FILE.parent.mkdir(parents=True, exist_ok=True)
        workflow_jobs.NAMES_FILE.write_text(content)
        workflow_jobs._read_names.cache_clear()
        assert title_of(job) == title
    # A message of the rule says more; without one Snakemake gives None.
    job.message = None
    assert title_of(job) == "train-a-kd-b-1_of_2_x"
    job.message = "train table2/fbt/swin_t__resnet18, seed 0: a-kd-b\n"
    assert title_of(job) == "train_table2_fbt_swin_t__resnet18_seed_0_a-kd-b"


def test_job_keeps_its_record_and_tells_its_child(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path
) -> None:
    job = pickle.loads(pickle.dumps(make_job("env > environment; exit 0")))
    assert job() == {"exit_code": 0}
    environment = (tmp_path / "environment").read_text()
    assert "SNAKEMAKE_SUBMITIT_RESTARTS=0" in environment
    assert "SNAKEMAKE_SUBMITIT_GPUS=1" in environment
    record = JobRecord.load(tmp_path / "records" / "record.json")
    assert record is not None
    assert (record.exit_code, record.restarts) == (0, 0)
    (tmp_path / "environment").unlink()
    assert job() == {"exit_code": 0}
    assert not (tmp_path / "environment").exists(), "a job that has ended well must not run again"


def test_signals_reach_the_program_but_not_the_shells(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path
) -> None:
    """The program saves and ends at SIGUSR2; shells and a neighbour without handlers in between go on."""
    program = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGUSR2, lambda *_: (pathlib.Path('saved').touch(), sys.exit(75)))\n"
        "pathlib.Path('ready').touch()\ntime.sleep(30)"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "start.py").write_text(
        "import pickle, sys\njob = pickle.load(open('job.pkl', 'rb'))\n"
        "import signal\nsignal.signal(signal.SIGUSR2, lambda *_: job.checkpoint() and sys.exit(5))\njob()"
    )
    job = make_job(f"bash -c '{sys.executable} program.py | cat'; echo $? > shell_lived")
    (tmp_path / "job.pkl").write_bytes(pickle.dumps(job))
    process = subprocess.Popen([sys.executable, "start.py"], cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGUSR2)
    assert process.wait(30) in (0, 5)
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "shell_lived").exists()


class QueuedAgain(BaseException):
    """Stands for the end of a job that asks to be requeued until it is killed."""


@pytest.mark.parametrize(("allowed", "end"), [(0, TooManyTimeoutsError), (1, QueuedAgain)])
def test_what_a_signal_raises_is_not_lost_in_what_it_interrupts(
    make_job: Callable[..., SnakemakeJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: int,
    end: type[BaseException],
) -> None:
    """Slurm sends SIGCONT just before: submitit's handler for it logs, and logging swallows any exception."""
    (tmp_path / "program.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        "os.kill(int(sys.argv[1]), signal.SIGUSR2)\ntime.sleep(30)"
    )
    job = make_job(f"exec {sys.executable} program.py {os.getpid()}", max_timeouts=allowed)
    heard: list[Any] = []

    def like_submitits(*_: object) -> None:
        heard.append(signal.getsignal(signal.SIGCONT))
        job.checkpoint()
        raise subprocess.CalledProcessError(1, "scontrol requeue")

    def like_logging() -> None:
        with contextlib.suppress(Exception):
            while not heard:
                time.sleep(0.1)

    def queue_again() -> None:
        raise QueuedAgain

    monkeypatch.setattr(job, "_sample", like_logging)
    monkeypatch.setattr(job, "_requeue_again", queue_again)
    before = signal.signal(signal.SIGUSR2, like_submitits)
    try:
        with pytest.raises(end):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIG_DFL], "SIGCONT has no handler that could be interrupted"


def test_job_removes_what_its_earlier_start_has_left(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old result would be taken for the new one's; a file half written stops submitit's next writing."""
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("7_0_result.pkl", "7_0_result.pkl.save_tmp", "7_submitted.pkl.save_tmp", "8_0_result.pkl"):
        (tmp_path / name).touch()
    assert make_job("exit 0", cluster="slurm")() == {"exit_code": 0}
    assert [path.name for path in tmp_path.glob("*.pkl*")] == ["8_0_result.pkl"]


def test_record_of_a_job_that_starts_again_has_no_end() -> None:
    record = JobRecord(submitted=0.0)
    record.start("n1", "7")
    record.end(75)
    record.start("n2", "7")
    assert (record.ended, record.exit_code) == (None, None)


def test_signal_after_the_end_of_the_command_is_not_heard(
    make_job: Callable[..., SnakemakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit would ask a child that is no more."""
    job = make_job("exit 0")
    before = signal.signal(signal.SIGUSR2, lambda *_: job.checkpoint())
    finish = job._finish
    monkeypatch.setattr(job, "_finish", lambda code: (os.kill(os.getpid(), signal.SIGUSR2), finish(code))[1])
    try:
        assert job() == {"exit_code": 0}
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_requeue_is_asked_for_until_the_job_is_killed(
    make_job: Callable[..., SnakemakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a Slurm that does not answer nor one that says no for minutes ends it."""
    paused: list[float] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if sum(paused) > 3600:
            raise KeyboardInterrupt

    def never(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(KeyboardInterrupt):
        make_job("exit 0")._requeue_again()
    assert 50 < len(paused) < 100


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_time_limits_are_counted_over_all_starts(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """As many as allowed are met and continued; the next one ends the job, and preemptions do not count."""
    for number in range(allowed + 1):
        job = make_job("exit 0", max_timeouts=allowed, runtime_s=60.0, signal_s=10.0)
        job._child = object()  # type: ignore[assignment]
        monkeypatch.setattr(job, "_watch", lambda: 75)  # the program saves and ends
        monkeypatch.setattr(job, "_forward", lambda number: None)
        job._record = JobRecord.load(tmp_path / "records" / "record.json") or job._record
        monkeypatch.setattr(job, "_cause", lambda: "preemption")
        assert job.checkpoint() is not None
        monkeypatch.setattr(job, "_cause", lambda: "time limit")
        if number < allowed:
            assert job.checkpoint() is not None
            assert job._requeued
            continue
        with pytest.raises(TooManyTimeoutsError, match=f"{allowed + 1} times"):
            job.checkpoint()
    record = JobRecord.load(tmp_path / "records" / "record.json")
    assert record is not None
    assert (record.timeouts, record.exit_code) == (allowed + 1, 75)


@pytest.mark.parametrize(
    ("cluster", "age", "asked", "cause"),
    [
        ("slurm", 0.0, True, "preemption"),
        ("slurm", 3500.0, True, "preemption"),
        ("slurm", 3500.0, False, "time limit"),
        ("slurm", 10.0, False, "preemption"),
        ("local", 3500.0, True, "time limit"),
        ("local", 10.0, False, "preemption"),
    ],
)
def test_time_limit_and_preemption_are_distinguished(
    make_job: Callable[..., SnakemakeJob],
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    age: float,
    asked: bool,
    cause: str,
) -> None:
    job = make_job("exit 0", cluster=cluster, runtime_s=3600.0, signal_s=120.0)
    monkeypatch.setattr("snakemake_executor_plugin_submitit.job.preempted", lambda identifier: asked)
    job._started = time.time() - age
    assert job._cause() == cause


def test_program_that_ends_well_at_the_signal_is_done(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path
) -> None:
    """It is not queued again, and its record says so."""
    (tmp_path / "program.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))\n"
        "os.kill(int(sys.argv[1]), signal.SIGUSR2)\ntime.sleep(30)"
    )
    job = make_job(f"exec {sys.executable} program.py {os.getpid()}")
    before = signal.signal(signal.SIGUSR2, lambda *_: job.checkpoint())
    try:
        assert job() == {"exit_code": 0}
    finally:
        signal.signal(signal.SIGUSR2, before)
    record = JobRecord.load(tmp_path / "records" / "record.json")
    assert record is not None
    assert (record.exit_code, len(record.interruptions)) == (0, 1)
    assert record.ended is not None


def test_failing_command_leaves_its_end_and_its_memory(
    make_job: Callable[..., SnakemakeJob], tmp_path: Path
) -> None:
    eat = "bytearray(80_000_000)"
    with pytest.raises(RuleError, match="exit code 3"):
        make_job(f"{sys.executable} -c '{eat}'; exit 3")()
    record = JobRecord.load(tmp_path / "records" / "record.json")
    assert record is not None
    assert record.exit_code == 3
    assert record.ended is not None
    assert record.peak_memory_mb > 80


def test_job_killed_by_a_signal_counts_as_a_shell_counts(make_job: Callable[..., SnakemakeJob]) -> None:
    with pytest.raises(RuleError, match="exit code 137"):
        make_job("kill -KILL $$")()


def test_job_runs_where_linux_has_more_than_other_systems(
    make_job: Callable[..., SnakemakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("waitid", "pidfd_open", "sched_getaffinity", "P_PIDFD"):
        monkeypatch.delattr(os, name, raising=False)
    assert make_job("sleep 0.3; exit 0")() == {"exit_code": 0}


def test_importing_the_plugin_imports_neither_submitit_nor_torch() -> None:
    code = (
        "import sys, snakemake_executor_plugin_submitit\n"
        "print([name for name in ('submitit', 'torch') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

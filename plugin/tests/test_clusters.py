"""Clusters as they are: the shell around Snakemake, ways to count GPUs, jobs and resources of others."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import backends, queue, reattach, slurm
from snakemake_executor_plugin_submitit.backends import Look, Result, SlurmBackend, setup_lines
from snakemake_executor_plugin_submitit.job import RuleError, SnakemakeJob
from snakemake_executor_plugin_submitit.journal import Journal, make_key, sweep
from snakemake_executor_plugin_submitit.messages import explain_failure
from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.requests import (
    RequestError,
    ignored_resources,
    read_request,
)
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.workflow_jobs import RequestReader
from snakemake_interface_common.exceptions import WorkflowError

from fakes import MadeExecutor, Watched, make_entry, make_job

SHELL = {
    "PATH": "/usr/bin",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_JWT": "secret",
    "SLURM_JOB_ID": "12",
    "SLURM_NTASKS": "4",
    "SQUEUE_PARTITION": "other",
    "SQUEUE_FORMAT": "%i",
    "SBATCH_WAIT": "1",
    "SBATCH_ACCOUNT": "physics",
    "SBATCH_TIMELIMIT": "1:30:00",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_CLUSTERS": "east",
    "SCANCEL_INTERACTIVE": "true",
}


# The shell around Snakemake


def test_clients_get_nothing_that_changes_their_question_or_answer() -> None:
    assert slurm.client_environment(SHELL) == {
        "PATH": "/usr/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JWT": "secret",
        "SLURM_CLUSTERS": "east",
    }


def test_every_client_is_called_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also sbatch, which submitit calls with this process's environment."""
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    answer = slurm.ask(["sh", "-c", "echo ${SQUEUE_PARTITION-none}"])
    assert answer.strip() == "none"
    with slurm.clean_environment():
        assert "SQUEUE_PARTITION" not in os.environ
    assert os.environ["SQUEUE_PARTITION"] == "other"


def test_what_becomes_of_the_variables_is_said() -> None:
    used, dropped, inside = slurm.explain_environment(SHELL)
    assert "SBATCH_ACCOUNT=physics" in used
    assert "SBATCH_EXPORT=NONE" in used
    assert "SBATCH_WAIT, SCANCEL_INTERACTIVE, SQUEUE_FORMAT, SQUEUE_PARTITION: not passed on" in dropped
    assert "inside job 12" in inside
    assert "secret" not in used + dropped + inside
    assert slurm.explain_environment({"PATH": "/usr/bin", "SLURM_CONF": "x"}) == []


def test_the_shells_account_and_time_hold_where_the_rule_is_silent() -> None:
    defaults = slurm.shell_defaults(SHELL)
    request = read_request({"qos": "long"}, 1, "rule train", defaults=defaults)
    assert (request.slurm_account, request.runtime, request.qos) == ("physics", 90, "long")
    assert request.options() == {"export": "NONE"}
    request = read_request(
        {"slurm_account": "maths", "runtime": 5, "slurm_extra": "--export=ALL"}, 1, "rule", defaults=defaults
    )
    assert (request.slurm_account, request.runtime) == ("maths", 5)
    assert request.options() == {"export": "ALL"}


# Counting GPUs


@pytest.mark.parametrize(
    ("option", "resources", "expected"),
    [
        ("gpus-per-node", {"gpu": 4, "nodes": 2}, {"ntasks": "2", "gpus-per-node": "2"}),
        ("gres", {"gpu": 4, "nodes": 2}, {"ntasks": "2", "gres": "gpu:2"}),
        ("gres", {"gpu": 1, "gpu_model": "a100"}, {"gres": "gpu:a100:1"}),
        ("gres", {"gres": "gpu:a100:2,nvme:1"}, {"gres": "gpu:a100:2,nvme:1"}),
        ("gpus-per-node", {"gres": "gpu:2", "nodes": 2}, {"ntasks": "2", "gpus-per-node": "2"}),
        ("gres", {"slurm_extra": "--gres=gpu:a100:2"}, {"gres": "gpu:a100:2"}),
        ("gpus-per-task", {"gpu": 4, "tasks": 2}, {"ntasks": "2", "gpus-per-task": "2"}),
        ("gpus-per-task", {"gpu": 1}, {"ntasks": "1", "gpus-per-task": "1"}),
        ("gres", {"gres": "nvme:1"}, {"gres": "nvme:1"}),
    ],
)
def test_gpus_are_asked_for_as_the_cluster_counts_them(
    option: str, resources: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert read_request(resources, 1, "rule", gpu_option=option).options(option) == expected


@pytest.mark.parametrize(
    ("resources", "part"),
    [
        ({"gres": "gpu:2", "gpu": 1}, "gres=gpu:2 contradicts gpu=1"),
        ({"gres": "gpu:a:b:1"}, "write gpu:2 or gpu:a100:2"),
        ({"gpu": 3, "tasks": 2}, "cannot be shared evenly by tasks=2"),
    ],
)
def test_gpus_that_cannot_be_meant(resources: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError, match=part):
        read_request(resources, 1, "rule", gpu_option="gpus-per-task")


def test_the_first_option_that_slurm_accepts_is_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def test_only(command: list[str], *_: Any, **__: Any) -> str:
        text = Path(command[-1]).read_text()
        asked.append(text)
        if "--gres=gpu:1" not in text:
            raise slurm.SlurmRefusedError("sbatch: error: Invalid generic resource (gres) specification")
        return ""

    monkeypatch.setattr(backends, "ask_patiently", test_only)
    backend = SlurmBackend(ExecutorSettings(), tmp_path, lambda line: None)
    for _ in range(2):
        text = backend.executor(read_request({"gpu": 1}, 1, "r"), "train", "t", 1)._make_submission_file_text(
            "x", "t"
        )
        assert "--gres=gpu:1" in text
        assert "gpus-per-node" not in text
    assert len(asked) == 2


# Resources of others


def test_resources_of_other_executors_and_without_a_limit_are_passed_over() -> None:
    resources = {"io": 50, "clusters": "east", "mpi": "srun", "lsf_queue": "x", "runtime": 5, "_cores": 1}
    assert read_request(resources, 1, "rule").runtime == 5
    ignored = ignored_resources(resources, [])
    assert set(ignored) == {"io", "clusters", "mpi", "lsf_queue"}
    assert ignored["io"] == "it has no limit (--resources io=N)"
    assert ignored_resources({"io": 50}, ["io"]) == {}


def test_resources_of_the_official_plugin_are_honoured() -> None:
    resources = {"gres": "gpu:2", "cpus_per_gpu": 4, "tasks_per_node": 3, "nodes": 1, "reservation": "course"}
    request = read_request(resources, 1, "rule")
    assert (request.gpu, request.cpus, request.tasks) == (2, 8, 3)
    assert request.options()["reservation"] == "course"


def test_all_memory_of_a_node() -> None:
    assert read_request({"mem_mb": 0}, 1, "rule").parameters()["mem"] == "0M"


@pytest.mark.parametrize(("by_default", "kept"), [("mem_mb", "mem_mb_per_cpu"), ("mem_mb_per_cpu", "mem_mb")])
def test_a_default_yields_to_what_the_rule_says(by_default: str, kept: str) -> None:
    """Snakemake sets mem_mb for every rule of a remote executor."""
    default, chosen = SimpleNamespace(raw="min(max(2*input.size_mb, 1000), 8000)"), SimpleNamespace(raw=500)
    settings = SimpleNamespace(_parsed_default_resources={by_default: default})
    rule = SimpleNamespace(
        resources={by_default: default, kept: chosen}, workflow=SimpleNamespace(resource_settings=settings)
    )
    job = make_job(resources={"mem_mb": 1000, "mem_mb_per_cpu": 500}, rule=rule)
    reader = RequestReader(SimpleNamespace(global_resources={}), ExecutorSettings(cluster="local"))
    request = reader.request_of(job)
    assert (request.mem_mb, request.mem_mb_per_cpu) == ((1000, None) if kept == "mem_mb" else (None, 500))


# Answers with banners; jobs of others under our numbers


def test_banners_before_an_answer_are_skipped() -> None:
    banner = "*** maintenance | on | Monday ***\nWelcome\n\n"
    listing = banner + "main*|infinite|n/a|up|gpu:2|8|16000|1\n"
    assert set(slurm.read_partitions(listing)) == {"main"}
    lines = list(queue.read_lines(banner + "12|RUNNING|n1|train|snakemake-submitit:t|None\n"))
    assert [line.job_id for line in lines] == ["12"]


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Look | None]:
    """What the backend says of job 7 (token t, rule train) after many answers of squeue and sacct."""
    backend = SlurmBackend(ExecutorSettings(), tmp_path, lambda line: None)
    backend.accounting = True
    now = [0.0]
    backend.queue.clock = backend._accounting.clock = lambda: now[0]

    def look(squeue: str, sacct: str) -> Look | None:
        answers = {"squeue": squeue, "sacct": sacct}
        monkeypatch.setattr(queue, "ask", lambda command, timeout=0: answers[command[0]])
        for second in range(0, 200, 10):
            now[0] = float(second)
            backend.refresh()
            latest = backend.look(make_entry(tmp_path))
        return latest

    return look


@pytest.mark.parametrize("comment", ["snakemake-submitit:another", "", "(null)"])
def test_another_job_under_our_number_is_not_taken_for_ours(
    answered: Callable[[str, str], Look | None], comment: str
) -> None:
    """A wiped controller counts from 1 again."""
    assert answered(f"7|RUNNING|n1|fold|{comment}|None\n", "7|COMPLETED|fold\n") == Look("LOST", True)


def test_a_site_may_replace_comments(answered: Callable[[str, str], Look | None]) -> None:
    look = answered("7|RUNNING|n1|train|project=x|None\n", "")
    assert look is not None
    assert look.state == "RUNNING"


def test_a_job_of_another_cluster_of_slurm_is_not_submitted_twice(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.backend.cluster_name = "west"
    entry = make_entry(tmp_path, cluster_name="east")
    earlier = watched.earlier(entry)
    watched.backend.answer = Look("LOST", True)
    watched.now += 100
    assert earlier.known()
    conflict = str(earlier.conflict(earlier.jobs_making(entry.key, entry.outputs), entry.outputs))
    assert "may still run on Slurm's cluster east: run the same command on a login node of east" in conflict


# Results that others may have written


def test_a_result_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    said: list[str] = []
    backend = SlurmBackend(ExecutorSettings(), tmp_path, said.append)
    path = tmp_path / "7_0_result.pkl"
    entry = make_entry(tmp_path, result=str(path))
    path.write_bytes(pickle.dumps(("success", {"exit_code": 0})))
    assert backend.result(entry) == Result(None)
    path.chmod(0o664)
    assert backend.result(entry) == Result(None), "umask 002 is usual on shared folders"
    path.chmod(0o666)
    assert backend.result(entry) is None
    assert backend.result(entry) is None
    assert len(said) == 1
    assert "everybody may write to it" in said[0]


@pytest.mark.parametrize("whose", ["another user's", "a link to the user's own"])
def test_a_result_that_is_not_the_users_own_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    said: list[str] = []
    backend = SlurmBackend(ExecutorSettings(), tmp_path, said.append)
    path = tmp_path / "7_0_result.pkl"
    target = path if whose == "another user's" else tmp_path / "elsewhere"
    target.write_bytes(pickle.dumps(("success", {"exit_code": 0})))
    if target == path:
        assert backend.result(make_entry(tmp_path, result=str(path))) == Result(None)
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    else:
        path.symlink_to(target)
    assert backend.result(make_entry(tmp_path, result=str(path))) is None
    assert len(said) == 1
    assert ("belongs to another user" if target == path else "is no plain file") in said[0]


def test_a_result_runs_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/harmed",)

    backend = SlurmBackend(ExecutorSettings(), tmp_path, print)
    entry = make_entry(tmp_path, result=str(tmp_path / "7_0_result.pkl"))
    (tmp_path / "7_0_result.pkl").write_bytes(pickle.dumps(("success", Harm())))
    assert backend.result(entry) is None
    assert not (tmp_path / "harmed").exists()


# The user's own first line


@pytest.mark.parametrize(
    ("line", "code"), [("true", 0), ("module load nothing-like-this", 127), ("(exit 3)", 3)]
)
def test_a_setup_line_that_fails_fails_the_job(tmp_path: Path, line: str, code: int) -> None:
    (setup,) = setup_lines(ExecutorSettings(setup=line))
    answer = subprocess.run(
        ["sh", "-c", f"{setup} && {sys.executable} -c 'print(5)'"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == code
    assert (answer.stdout == "5\n") == (code == 0)
    assert code == 0 or f"--submitit-setup failed with exit code {code}" in answer.stderr


# Two controllers; damaged files; old files


def test_a_job_that_another_controller_submits_is_not_submitted_again(tmp_path: Path) -> None:
    """Both have read the journal before either has submitted (--nolock)."""
    first, second = (MadeExecutor(Watched(tmp_path), tmp_path) for _ in range(2))
    first.run_jobs([make_job("a"), make_job("b")], announce=False)
    second.run_jobs([make_job("b"), make_job("c")], announce=False)
    assert first.backend.chunks == [2]  # type: ignore[attr-defined]
    assert second.backend.chunks == [1]  # type: ignore[attr-defined]
    assert [info.external_jobid for info in second.active_jobs] == ["1_0", "1_1"]


def test_a_job_whose_other_controller_died_while_submitting_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "YOUNG_S", -1.0)
    watched = Watched(tmp_path)
    executor = MadeExecutor(watched, tmp_path)
    entry = make_entry(tmp_path, key=make_key(["a"], "train", {}), state="SUBMITTING", job_id=None)
    watched.journal.write(entry)
    executor.run_jobs([make_job("a")], announce=False)
    assert watched.backend.chunks == [1]


def test_the_journal_is_locked_by_one_controller_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from snakemake_executor_plugin_submitit.journal import Journal\n"
        "with Journal(Path(sys.argv[1])).locked():\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        entered = threading.Event()

        def enter() -> None:
            with Journal(tmp_path).locked():
                entered.set()

        threading.Thread(target=enter, daemon=True).start()
        assert not entered.wait(0.5)
        other.kill()
        assert entered.wait(10), "a lock dies with its controller"


def test_a_damaged_file_is_no_reason_to_submit_a_running_job_again(tmp_path: Path) -> None:
    """The job is found by the mark of its submission, and that is said."""
    watched = Watched(tmp_path)
    first = MadeExecutor(watched, tmp_path)
    first.run_jobs([make_job("a"), make_job("b")], announce=False)
    path = watched.journal.path(make_key(["b"], "train", {}))
    path.write_text(path.read_text()[:100])
    later = MadeExecutor(watched, tmp_path)
    watched.backend.found = "1_1"
    later.run_jobs([make_job("b")], announce=False)
    assert watched.backend.chunks == [2]
    assert [info.external_jobid for info in later.active_jobs] == ["1_1"]
    assert f"{path} is damaged: looking for the job of train" in watched.said[0]
    entry = watched.journal.read(path.stem)
    assert entry is not None
    assert entry.token == next(iter(first.followed.values())).token
    assert entry.index == 1


def test_a_damaged_file_of_no_known_submission_is_said(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.journal.path(make_key(["a"], "train", {})).write_text("{")
    executor = MadeExecutor(watched, tmp_path)
    executor.run_jobs([make_job("a")], announce=False)
    assert watched.backend.chunks == [1]
    assert "is damaged and of no known submission" in watched.said[0]


def test_files_of_jobs_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    script = tmp_path / "scripts" / "new" / "a.sh"
    journal.write(make_entry(tmp_path, key="runs", job_id="8_1", token="r", script=str(script)))
    journal.write(make_entry(tmp_path, key="ended", job_id="7_0", token="e", state="COMPLETED"))
    old = ["jobs/7_0_0_log.out", "jobs/7_submission.sh", "records/e_0.json", "scripts/old/a.sh"]
    kept = ["jobs/8_1_0_log.out", "jobs/8_submission.sh", "records/r_1.json", "scripts/new/a.sh"]
    for name in [*old, *kept, "jobs/9_0_log.out"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        if not name.startswith("jobs/9"):
            os.utime(tmp_path / name, (1.0, 1.0))
    for folder in ("old", "new"):
        os.utime(tmp_path / "scripts" / folder, (1.0, 1.0))
    sweep(tmp_path, journal, days=30)
    assert not any((tmp_path / name).exists() for name in old)
    assert all((tmp_path / name).exists() for name in [*kept, "jobs/9_0_log.out"])
    assert len(list(journal.entries())) == 2


# Ctrl-C


def test_ctrl_c_that_leaves_jobs_is_no_failure_of_a_job(tmp_path: Path) -> None:
    """Snakemake would say that at least one job did not complete successfully."""
    executor = MadeExecutor(Watched(tmp_path), tmp_path)
    executor.run_jobs([make_job("a"), make_job("b")], announce=False)
    executor.follow()
    with pytest.raises(WorkflowError, match="Interrupted: 2 submitted jobs go on; the same command finds"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            executor.cancel()


# Outputs that do not appear


def test_a_command_that_ends_well_without_its_outputs_has_failed(tmp_path: Path) -> None:
    """A node with an old view of the folder: the job's own Snakemake finds nothing to do."""
    (tmp_path / "script.sh").write_text("#!/bin/sh\ntouch made\n")
    job = SnakemakeJob(
        tmp_path / "script.sh", tmp_path, tmp_path / "record.json", cluster="local", runtime_s=60.0,
        signal_s=10.0, max_timeouts=1, gpus=0, launcher="", submitted=1.0, inputs=["data.csv"],
        outputs=["made", "weights.pt"], latency_s=0.3,
    )  # fmt: skip
    with pytest.raises(RuleError):
        job()
    record = JobRecord.load(tmp_path / "record.json")
    assert record is not None
    assert record.exit_code != 0
    message = explain_failure(make_entry(tmp_path, node="n3", exit_code=record.exit_code), "FAILED", record)
    assert "ended with 0, but on node n3 these did not appear: output weights.pt, input data.csv" in message
    (tmp_path / "weights.pt").touch()
    assert job() == {"exit_code": 0}


# Ten thousand jobs


def test_nothing_is_judged_while_nothing_is_new(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    executor = MadeExecutor(watched, tmp_path)
    executor.run_jobs([make_job("a")], announce=False)
    judged: list[str] = []
    judge = watched.tracker.judge
    watched.tracker.judge = lambda entry: (judged.append(entry.key), judge(entry))[1]  # type: ignore[method-assign]
    watched.backend.refresh = lambda: None  # type: ignore[method-assign]

    async def one_round() -> int:
        return len([info async for info in executor.check_active_jobs(executor.active_jobs)])

    assert [asyncio.run(one_round()) for _ in range(5)] == [1] * 5
    assert len(judged) == 1
    watched.backend.answers += 1
    asyncio.run(one_round())
    assert len(judged) == 2


def test_a_result_is_seen_at_the_next_look(tmp_path: Path) -> None:
    """The folder is not read again while it has not changed for some looks."""
    backend = SlurmBackend(ExecutorSettings(), tmp_path / "jobs", print)
    for _ in range(20):
        assert backend.results_present() == set()
    (tmp_path / "jobs" / "7_0_result.pkl").touch()
    assert backend.results_present() == {"7_0_result.pkl"}
    (tmp_path / "jobs" / "8_0_result.pkl").touch()
    assert backend.results_present() == {"7_0_result.pkl", "8_0_result.pkl"}

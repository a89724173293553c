"""What a new controller makes of the jobs of an earlier one, without Slurm."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import reattach
from snakemake_executor_plugin_submitit.backends import Look, Result
from snakemake_executor_plugin_submitit.executor import key_of
from snakemake_executor_plugin_submitit.journal import JournalEntry, make_key
from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.slurm import SlurmBusyError, SlurmRefusedError

from fakes import MadeExecutor, Watched, make_entry, make_group, make_job


def entry_of(folder: Path, *outputs: str, **changes: Any) -> JournalEntry:
    """An entry of the job that makes these files."""
    return make_entry(folder, key=make_key(outputs, "train", {}), outputs=sorted(outputs), **changes)


def test_job_that_died_without_a_controller_is_submitted_again(tmp_path: Path) -> None:
    """squeue shows its end at once, the verdict takes a while: it must not be re-attached in between."""
    watched = Watched(tmp_path)
    earlier = watched.earlier()
    watched.backend.answer = Look("CANCELLED", True)
    assert not earlier.known()
    watched.now += 5
    assert earlier.known()
    assert not earlier.entries
    assert "has failed meanwhile: train run=one: cancelled" in watched.said[-1]


def test_job_that_has_left_an_error_is_no_running_one(tmp_path: Path) -> None:
    """squeue may show it for some seconds more."""
    watched = Watched(tmp_path)
    earlier = watched.earlier()
    watched.backend.left, watched.backend.answer = Result("RuleError: exit code 1"), Look("COMPLETING")
    assert not earlier.known()
    watched.backend.answer = Look("FAILED", True)
    assert earlier.known()
    assert not earlier.entries


def reason(**changes: Any) -> Any:
    """Why Snakemake wants to run a job."""
    fields = dict.fromkeys(
        ("missing_output", "incomplete_output", "updated_input", "updated_input_run", "forced"), False
    )
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("why", "force", "there", "done"),
    [
        ({"missing_output": True}, False, True, True),
        ({"forced": True}, False, True, True),  # incomplete files, with --rerun-incomplete
        ({"missing_output": True}, False, False, False),
        ({"missing_output": True, "updated_input_run": True}, False, True, False),
        ({"forced": True}, True, True, False),
        ({"updated_input": True}, False, True, False),
    ],
)
def test_job_that_ended_while_a_new_controller_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: dict[str, bool],
    force: bool,
    there: bool,
    done: bool,
) -> None:
    """Asked for because its files were not there yet, it is done; to be made anew, it is submitted."""
    monkeypatch.chdir(tmp_path)
    watched = Watched(tmp_path)
    entry = entry_of(tmp_path, "a")
    JobRecord(submitted=1.0, ended=60.0, exit_code=0).save(Path(entry.record))
    watched.backend.left = Result(None)
    executor = MadeExecutor(watched, tmp_path, entry)
    executor.earlier.find_out()
    if there:
        Path("a").touch()
    job = make_job("a")
    executor.reasons[job.name] = reason(**why)
    executor.workflow.dag_settings.forcetargets = force
    executor.run_jobs([job], announce=False)
    assert watched.backend.chunks == ([] if done else [1])
    if done:
        assert executor._ended(executor.active_jobs[0])
        assert executor.ended == [(True, "")]


def test_controller_that_died_while_it_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job may appear a moment later; its own record has its number; else it was never submitted."""
    watched = Watched(tmp_path)
    lost = make_entry(tmp_path, state="SUBMITTING", job_id=None, result=None, submitted=time.time())
    earlier = watched.earlier(lost)
    assert not earlier.known()
    record = JobRecord(submitted=1.0)
    record.start("n1", "12_3")
    record.save(Path(lost.record))
    assert earlier.known()
    assert next(iter(earlier.entries.values())).job_id == "12_3"
    Path(lost.record).unlink()
    earlier = watched.earlier(lost)
    monkeypatch.setattr(reattach, "YOUNG_S", -1.0)
    assert earlier.known()
    assert not earlier.entries
    assert next(watched.journal.entries()).state == "CANCELLED"


def test_record_knows_the_good_end_of_a_job_that_slurm_has_forgotten(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    lost = make_entry(tmp_path, state="SUBMITTING", job_id=None, result=None)
    record = JobRecord(submitted=1.0)
    record.start("n1", "12")
    record.end(0)
    record.save(Path(lost.record))
    earlier = watched.earlier(lost)
    watched.backend.answer = Look("LOST", True)
    earlier.known()
    watched.now += 10
    assert earlier.known()
    assert [entry.state for entry in earlier.entries.values()] == ["COMPLETED"]
    assert earlier.known(), "what has ended well is known ever after"


def test_waiting_is_said_once_and_asks_the_cluster_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue does not answer at first: nothing is submitted a second time meanwhile."""
    watched, slept = Watched(tmp_path), []
    watched.backend.answer = None

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(watched.said) == 1
        if len(slept) == 6:
            watched.backend.answer = Look("RUNNING")

    monkeypatch.setattr(reattach.time, "sleep", sleep)
    earlier = watched.earlier()
    earlier.find_out()
    assert list(earlier.entries) == ["k"]
    assert len(slept) == watched.backend.hurries == 6
    assert max(slept) == 5.0 and slept == sorted(slept)
    assert watched.said == [
        "an earlier call has submitted jobs; waiting until it is known what became of them."
    ]


def submitting(folder: Path, **changes: Any) -> JournalEntry:
    """An entry whose controller has not noted the number of its job."""
    return make_entry(folder, state="SUBMITTING", job_id=None, result=None, **changes)


@pytest.mark.parametrize("error", [SlurmBusyError, SlurmRefusedError])
def test_silence_of_slurm_settles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    watched = Watched(tmp_path)
    earlier = watched.earlier(submitting(tmp_path))

    def find(entry: JournalEntry) -> str | None:
        raise error("no answer")

    monkeypatch.setattr(watched.backend, "find", find)
    assert not earlier.known()
    assert earlier.entries


@pytest.mark.parametrize(("token", "job_id"), [("t", "31"), ("of another submission", None)])
def test_number_that_another_controller_has_written_since(
    tmp_path: Path, token: str, job_id: str | None
) -> None:
    """It submits at this moment. A later submission of the same job is another one."""
    watched = Watched(tmp_path)
    mine = submitting(tmp_path, submitted=time.time())
    earlier = watched.earlier(mine)
    watched.journal.write(make_entry(tmp_path, job_id="31", state="RUNNING", result=None, token=token))
    assert earlier.known() is (job_id is not None)
    (entry,) = earlier.entries.values()
    assert (entry.job_id, entry.state) == (job_id, "RUNNING" if job_id else "SUBMITTING")
    assert (entry.result is not None) is (job_id is not None), "the files of the job are named after it"


def test_number_that_the_cluster_knows_is_written_down(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    earlier = watched.earlier(submitting(tmp_path))
    watched.backend.found = "31"
    assert earlier.known()
    (written,) = watched.journal.entries()
    assert written.job_id == "31" and written.result is not None


def test_entry_of_long_ago_is_not_waited_for(tmp_path: Path) -> None:
    """sbatch outlives its controller by seconds, not by hours; one of this minute may still come."""
    watched = Watched(tmp_path)
    assert not watched.earlier(submitting(tmp_path, submitted=time.time() - 20)).known()
    earlier = watched.earlier(submitting(tmp_path, submitted=time.time() - 40))
    assert earlier.known() and not earlier.entries


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": "local", "host": "login7"}, "on cluster local: follow it with --submitit-cluster local"),
        (
            {"cluster": "slurm", "host": "login7"},
            "on machine login7: run the same command there to follow it",
        ),
    ],
)
def test_job_that_may_run_elsewhere_is_not_submitted_twice(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    """Another cluster, or processes of another login node."""
    watched = Watched(tmp_path)
    watched.backend.host = "login1"
    entry = entry_of(tmp_path, "a", **changes)
    executor = MadeExecutor(watched, tmp_path, entry)
    executor.earlier.find_out()
    executor.run_jobs([make_job("a")], announce=False)
    assert watched.backend.chunks == []
    assert words in executor.ended[0][1]
    assert str(watched.journal.path(entry.key)) in executor.ended[0][1]


@pytest.mark.parametrize("exit_code", [0, 1])
def test_end_of_a_job_elsewhere_is_read_from_its_record(tmp_path: Path, exit_code: int) -> None:
    watched = Watched(tmp_path)
    entry = entry_of(tmp_path, "a", cluster="local")
    JobRecord(submitted=1.0, ended=60.0, exit_code=exit_code).save(Path(entry.record))
    earlier = watched.earlier(entry)
    earlier.find_out()
    assert len(earlier.entries) == (exit_code == 0)
    (written,) = watched.journal.entries()
    assert (written.exit_code, written.ended) == (exit_code, 60.0)


def test_job_that_ran_inside_a_dead_controller_is_forgotten(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    earlier = watched.earlier(make_entry(tmp_path, cluster="debug"))
    earlier.find_out()
    assert not earlier.entries


def test_group_that_is_cut_anew_finds_its_jobs(tmp_path: Path) -> None:
    """A group of two runs; the next call asks for one of them, then for the other."""
    watched = Watched(tmp_path)
    executor = MadeExecutor(watched, tmp_path, entry_of(tmp_path, "a", "b"))
    executor.run_jobs([make_job("b"), make_job("a")], announce=False)
    assert watched.backend.chunks == []
    assert [info.external_jobid for info in executor.active_jobs] == ["7", "7"]
    watched.backend.left = Result(None)
    watched.tracker.look_around()
    for info in executor.active_jobs:
        assert executor._ended(info)
    assert executor.ended == [(True, ""), (True, "")]
    executor.run_jobs([make_job("a")], announce=False)
    assert watched.backend.chunks == [1], "asked for once more it is a new job"


def test_group_of_jobs_that_run_apart_waits_for_another_call(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    executor = MadeExecutor(watched, tmp_path, entry_of(tmp_path, "a"), entry_of(tmp_path, "b", job_id="8"))
    executor.run_jobs([make_group(make_job("a"), make_job("b"))], announce=False)
    assert watched.backend.chunks == []
    assert (
        "grouped in another way, make part of its outputs: train run=one (7), train" in executor.ended[0][1]
    )
    assert "scancel 7 8" in executor.ended[0][1]


def test_group_that_an_earlier_job_makes_in_part_waits_for_another_call(tmp_path: Path) -> None:
    """Re-attached, its other part would never be made; submitted, two jobs would write one file."""
    watched = Watched(tmp_path)
    executor = MadeExecutor(watched, tmp_path, entry_of(tmp_path, "a"))
    executor.run_jobs([make_group(make_job("a"), make_job("b"))], announce=False)
    assert watched.backend.chunks == [] and executor.active_jobs == []
    assert "make part of its outputs: train run=one (7)" in executor.ended[0][1]


def test_a_deleted_script_of_a_waiting_job_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts the job perhaps days later, with the script of that name."""
    watched = Watched(tmp_path)
    executor, entry = MadeExecutor(watched, tmp_path), watched.entry
    entry.script = str(tmp_path / "scripts" / "gone" / "a.sh")
    executor.write_jobscript = lambda job, path: Path(path).write_text("#!/bin/sh\n")  # type: ignore
    monkeypatch.setattr(watched.backend, "restore_function", lambda *_: None, raising=False)
    executor._restore(make_job("out.txt"), entry)
    assert Path(entry.script).read_text() == "#!/bin/sh\n"


def test_group_is_known_by_all_its_files() -> None:
    pair = make_group(make_job("a"), make_job("b", input=["a"]))
    assert key_of(pair) == make_key(["b", "a"], "train", {})

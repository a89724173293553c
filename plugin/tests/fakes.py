"""A cluster, jobs and an executor whose answers a test sets: for the plugin's parts without Slurm."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_submitit.backends import Backend, Look, Result
from snakemake_executor_plugin_submitit.executor import Executor
from snakemake_executor_plugin_submitit.journal import Journal, JournalEntry
from snakemake_executor_plugin_submitit.reattach import EarlierJobs
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.tracker import Tracker
from snakemake_executor_plugin_submitit.workflow_jobs import RequestReader


def make_entry(folder: Path, **changes: Any) -> JournalEntry:
    """An entry of a submitted job."""
    fields: dict[str, Any] = {
        "key": "k", "name": "train run=one", "rule": "train", "wildcards": {"run": "one"}, "outputs": ["a"],
        "cluster": "slurm", "token": "t", "script": str(folder / "script.sh"),
        "record": str(folder / "record.json"),
        "submitted": 1.0, "state": "PENDING", "job_id": "7", "result": str(folder / "7_0_result.pkl"),
        "log": str(folder / "out"), "error_log": str(folder / "err"),
    }  # fmt: skip
    return JournalEntry(**{**fields, **changes})


class FakeBackend(Backend):
    """A cluster whose answers the test sets; it notes what it is asked."""

    name = "slurm"
    array_limit = 1000

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(ExecutorSettings(**settings), folder / "jobs", lambda line: None)
        self.answer: Look | None = Look("RUNNING")
        self.left: Result | None = None
        self.found: str | None = None
        self.room = 10**6
        self.others_in_queue = False
        self.chunks: list[int] = []
        self.cancelled: list[str | None] = []
        self.hurries = 0

    def submit(self, jobs: Any, request: Any, name: str, token: str) -> list[str]:
        from snakemake_executor_plugin_submitit.slurm import QueueFullError

        self.chunks.append(len(jobs))
        if len(jobs) > self.room:
            raise QueueFullError("sbatch: AssocMaxSubmitJobLimit")
        self.room -= len(jobs)
        return [f"{len(self.chunks)}_{index}" for index in range(len(jobs))]

    def busy(self) -> bool:
        return self.others_in_queue

    def find(self, entry: JournalEntry) -> str | None:
        return self.found or super().find(entry)

    def look(self, entry: JournalEntry) -> Look | None:
        return self.answer

    def result(self, entry: JournalEntry) -> Result | None:
        return self.left

    def results_present(self) -> set[str]:
        return {"7_0_result.pkl"} if self.left else set()

    def hurry(self) -> None:
        self.hurries += 1

    def drop_result(self, entry: JournalEntry) -> None:
        self.left = None

    def restore_function(self, job_id: str, job: Any, request: Any) -> None:
        return

    def cancel(self, entries: Any) -> None:
        self.cancelled += [entry.job_id for entry in entries]


class Watched:
    """A tracker with a clock and a cluster in the test's hands."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.backend, self.said, self.now = FakeBackend(folder, **settings), [], 0.0
        self.journal = Journal(folder / "journal")
        self.tracker = Tracker(self.backend, self.journal, self.say, clock=lambda: self.now, latency_wait=5.0)
        self.entry = make_entry(folder)

    def say(self, line: str) -> None:
        self.said.append(line)

    def judge(self, answer: Look | None, after: float = 1.0) -> Any:
        self.backend.answer = answer
        self.now += after
        self.tracker.look_around()
        return self.tracker.judge(self.entry)

    def earlier(self, *entries: JournalEntry) -> EarlierJobs:
        """What a new controller finds if the journal holds these."""
        for entry in entries or [self.entry]:
            self.journal.write(entry)
        return EarlierJobs(self.backend, self.tracker, self.journal, self.say)


def make_job(*outputs: str, name: str = "train", **changes: Any) -> Any:
    """One of Snakemake's jobs."""
    fields: dict[str, Any] = {
        "name": name, "output": list(outputs) or ["a"], "wildcards_dict": {}, "params": [], "shellcmd": "",
        "resources": {}, "threads": 1, "is_group": lambda: False, "input": [],
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def make_group(*jobs: Any) -> Any:
    """A group of Snakemake's jobs, whose outputs are those that none of its own jobs reads."""
    return make_job(*[path for job in jobs for path in job.output], jobs=list(jobs), is_group=lambda: True)


class MadeExecutor(Executor):
    """The executor without a workflow around it; it notes what it reports to Snakemake."""

    def __init__(self, watched: Watched, folder: Path, *earlier: JournalEntry) -> None:
        self.settings = watched.backend.settings
        self.folder, self.logger = folder, logging.getLogger("fake")
        self.journal, self.backend, self.tracker = watched.journal, watched.backend, watched.tracker
        self.followed: dict[str, JournalEntry] = {}
        self._tokens: set[str] = set()
        self.requests = RequestReader(SimpleNamespace(global_resources={}), self.settings)
        self._scripts: Path | None = None
        self._failures = 0
        self._failing_since: float | None = None
        self._failed = False
        self.say = watched.say  # type: ignore[method-assign]
        self.reasons: dict[str, Any] = {}
        self.workflow = SimpleNamespace(
            global_resources={},
            dag_settings=SimpleNamespace(forceall=False, forcetargets=False, forcerun=set()),
            dag=SimpleNamespace(reason=lambda job: self.reasons[job.name]),
            executor_plugin=SimpleNamespace(
                common_settings=SimpleNamespace(init_seconds_before_status_checks=0)
            ),
            scheduler=SimpleNamespace(executor_error_callback=self.note_crash),
        )
        self.earlier = watched.earlier(*earlier) if earlier else EarlierJobs(
            self.backend, self.tracker, self.journal, self.say
        )  # fmt: skip
        self.ended: list[tuple[bool, str]] = []
        self.crashes: list[Exception] = []
        self.active_jobs: list[Any] = []
        self.lock, self.wait, self._stopping = threading.Lock(), True, threading.Event()
        self.wait_thread = threading.Thread(target=self._wait_thread, daemon=True)

    def note_crash(self, error: Exception) -> None:
        self.crashes.append(error)

    def follow(self) -> None:
        """Start the poller."""
        self.wait_thread.start()

    def get_jobscript(self, job: Any) -> str:
        return str(Path(self.tmpdir) / f"{'_'.join(job.output)}.sh")

    def write_jobscript(self, job: Any, jobscript: str) -> None:
        Path(jobscript).write_text("#!/bin/sh\n")

    def report_job_submission(self, job_info: Any, register_job: bool = True) -> None:
        with self.lock:
            self.active_jobs.append(job_info)

    def report_job_success(self, job_info: Any) -> None:
        self.ended.append((True, ""))

    def report_job_error(self, job_info: Any, msg: str | None = None, **kwargs: Any) -> None:
        self.ended.append((False, msg or ""))

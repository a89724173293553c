"""The three clusters of submitit behind one face: submit, look, cancel."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.job import SnakemakeJob, family
from snakemake_executor_plugin_submitit.journal import Entry
from snakemake_executor_plugin_submitit.queue import ENDED_STATES, Line, Queue, ended_states
from snakemake_executor_plugin_submitit.requests import Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import (
    Backoff,
    ClusterFacts,
    SlurmBusyError,
    SlurmRefusedError,
    ask,
    classify,
    outside_of_jobs,
    queue_full,
    read_facts,
)

__all__ = ["Backend", "Look", "Result", "make_backend"]

UNLIMITED_MINUTES = 365 * 24 * 60
NEVER_BY_SUBMITIT = 10**6
"""submitit's own count of timeouts is coarse for short limits; SnakemakeJob counts by itself."""


@dataclass(frozen=True)
class Look:
    """What a cluster says of a job: a word for its state, whether it is over, and why it waits."""

    state: str
    ended: bool = False
    reason: str = ""
    node: str = ""
    by_whom: str = ""


@dataclass(frozen=True)
class Result:
    """What submitit's function has left: its value, or the traceback."""

    error: str | None


class Backend(ABC):
    """One of submitit's clusters."""

    name: str
    array_limit = 1
    accounting = False

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.folder = folder
        self.say = say
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Learn about the cluster; raises SlurmRefusedError or SlurmBusyError."""
        return

    def problems(self, request: Request) -> list[str]:
        """Why the cluster can never run a request, one line each."""
        return ["nodes: this cluster has only one"] if request.nodes > 1 else []

    def minutes(self, request: Request) -> int:
        """The time limit that a job will have."""
        return request.runtime or UNLIMITED_MINUTES

    @abstractmethod
    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        """Submit jobs with equal requests and return their ids. Raises SlurmRefusedError."""

    def find(self, token: str) -> dict[int | None, str]:
        """Ids of jobs that an earlier head has submitted, by their place in the array."""
        return {}

    def mend(self, job_id: str, job: SnakemakeJob, request: Request) -> None:
        """Give a job its function again if the head died before it could."""
        from submitit.core.utils import DelayedSubmission

        path = self.paths(job_id).submitted_pickle
        if not path.exists():
            delayed = DelayedSubmission(job)
            delayed.set_timeout(self.minutes(request), NEVER_BY_SUBMITIT)
            delayed.dump(path)

    def refresh(self) -> None:
        """Learn the state of all jobs, if it is time to."""
        return

    @abstractmethod
    def look(self, entry: Entry) -> Look | None:
        """The state of one job; None if nothing is known at the moment."""

    @abstractmethod
    def cancel(self, entries: Sequence[Entry]) -> None:
        """End jobs for good."""

    def cancel_command(self, entries: Sequence[Entry]) -> str:
        """What a user types to end jobs."""
        return "scancel " + " ".join(sorted({(entry.job_id or "").split("_")[0] for entry in entries}))

    def paths(self, job_id: str) -> Any:
        """Where submitit keeps the files of a job."""
        from submitit.core.utils import JobPaths

        return JobPaths(self.folder, job_id)

    def result(self, entry: Entry) -> Result | None:
        """What the job's function has returned, if it has."""
        try:
            content = Path(entry.result or "").read_bytes() if entry.result else b""
            return Result(None if (pair := pickle.loads(content))[0] == "success" else str(pair[1]))
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def hurry(self) -> None:
        """Make the next refresh ask at once."""
        return

    def forget(self, entry: Entry) -> None:
        """Remove what nobody needs once a job has ended well; its logs stay."""
        if entry.job_id and entry.result:
            self.paths(entry.job_id).submitted_pickle.unlink(missing_ok=True)
            Path(entry.result).unlink(missing_ok=True)

    def results_present(self) -> set[str]:
        """Names of all result files, by one look into the folder."""
        with os.scandir(self.folder) as files:
            return {file.name for file in files if file.name.endswith("_result.pkl")}


class SlurmBackend(Backend):
    """Slurm: sbatch through submitit, one squeue per interval, sacct only for what squeue has forgotten."""

    name = "slurm"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self.queue = Queue(settings.poll_seconds, say)
        self.facts: ClusterFacts | None = None
        self._missing: dict[str, int] = {}
        self._accounted: dict[str, tuple[str, str]] = {}

    def prepare(self) -> None:
        missing = [
            command for command in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(command) is None
        ]
        if missing:
            raise SlurmRefusedError(
                f"the command {missing[0]} is not on PATH: is this a login node of a Slurm cluster? "
                "Without Slurm use --submitit-cluster local"
            )
        self.facts = read_facts(self.say)
        self.accounting = self.facts.accounting
        self.array_limit = max(1, min(self.settings.array_size, self.facts.max_array_size - 1))

    def problems(self, request: Request) -> list[str]:
        return [] if self.facts is None else self.facts.problems(request)

    def minutes(self, request: Request) -> int:
        limit = request.runtime if self.facts is None else self.facts.minutes(request)
        return limit or UNLIMITED_MINUTES

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        backoff = Backoff(first=2.0)
        while True:
            try:
                return self._submit_once(jobs, request, name, token)
            except SlurmBusyError as error:
                if backoff.failures == 0:
                    self.say(f"Slurm does not take jobs at the moment ({error}); trying again until it does.")
                time.sleep(backoff.failed())
                if found := self._submitted_all_the_same(jobs, request, token):
                    return found

    def _submit_once(
        self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str
    ) -> list[str]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self.executor(request, name, token, len(jobs))
        try:
            with outside_of_jobs():
                submitted = (
                    [executor.submit(jobs[0])] if len(jobs) == 1 else executor.submit_array(list(jobs))
                )
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            if queue_full(str(error)):
                raise SlurmBusyError(
                    f"your share of the queue is full: {' '.join(str(error).split())}"
                ) from None
            raise classify(str(error), "sbatch") from None
        self.queue.hurry()
        return [job.job_id for job in submitted]

    def _submitted_all_the_same(
        self, jobs: Sequence[SnakemakeJob], request: Request, token: str
    ) -> list[str] | None:
        """After sbatch failed without an answer the jobs may be in the queue all the same."""
        try:
            found = self.find(token)
        except SlurmBusyError:
            return None
        if not found:
            return None
        job_ids = [found[None]] if None in found else [found[index] for index in range(len(jobs))]
        for job_id, job in zip(job_ids, jobs, strict=True):
            self.mend(job_id, job, request)
        return job_ids

    def executor(self, request: Request, name: str, token: str, count: int) -> Any:
        """submitit's executor with all parameters of one submission."""
        from submitit.slurm.slurm import SlurmExecutor

        executor = SlurmExecutor(self.folder, max_num_timeout=NEVER_BY_SUBMITIT)
        parameters = request.parameters()
        parameters["time"] = self.minutes(request)
        executor.update_parameters(
            **parameters,
            job_name=name,
            comment=mark(token),
            wckey=None,
            signal_delay_s=self.settings.signal_seconds,
            array_parallelism=self.settings.array_throttle or count,
            setup=[self.settings.setup] if self.settings.setup else None,
            srun_args=["--nodes=1", "--ntasks=1", f"--cpus-per-task={request.cpus}"],
            additional_parameters={"requeue": True, **request.options()},
        )
        return executor

    def try_submission(self, request: Request, name: str) -> str | None:
        """Ask Slurm whether it would take a job (sbatch --test-only); None if it would, else its answer."""
        text = self.executor(request, name, "test", 1)._make_submission_file_text("true", "test")
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(text)
            script.flush()
            try:
                with outside_of_jobs():
                    ask(["sbatch", "--test-only", script.name])
            except (SlurmRefusedError, SlurmBusyError) as error:
                return str(error)
        return None

    def find(self, token: str) -> dict[int | None, str]:
        answer = ask(["squeue", "--noheader", "--array", "--all", "--states=all", f"--user={os.getuid()}",
                      "--format=%i|%k"])  # fmt: skip
        found: dict[int | None, str] = {}
        for line in answer.splitlines():
            job_id, _, comment = line.strip().partition("|")
            if comment.strip() == mark(token):
                _, _, index = job_id.partition("_")
                found[int(index) if index else None] = job_id
        return found

    def refresh(self) -> None:
        if self.queue.refresh():
            for job_id in [one for one in self._missing if one in self.queue.lines]:
                del self._missing[job_id]
            self._ask_accounting()

    def hurry(self) -> None:
        self.queue.hurry()

    def _ask_accounting(self) -> None:
        forgotten = [one for one, since in self._missing.items() if self.queue.answers >= since + 2]
        if not self.accounting or not forgotten:
            return
        try:
            self._accounted.update(ended_states(forgotten))
        except (SlurmBusyError, SlurmRefusedError):
            return

    def look(self, entry: Entry) -> Look | None:
        job_id = entry.job_id or ""
        line = self.queue.lines.get(job_id)
        if line is None:
            return self._look_back(job_id)
        by_whom = self._who_cancelled(job_id) if line.state == "CANCELLED" else ""
        return Look(line.state, line.ended, line.reason, line.node, by_whom)

    def _who_cancelled(self, job_id: str) -> str:
        if not self.accounting:
            return ""
        if job_id not in self._accounted:
            try:
                self._accounted.update(ended_states([job_id]))
            except (SlurmBusyError, SlurmRefusedError):
                return ""
        return self._accounted.get(job_id, ("", ""))[1]

    def _look_back(self, job_id: str) -> Look | None:
        """A job that squeue does not show: too new, or ended and forgotten."""
        since = self._missing.setdefault(job_id, self.queue.answers)
        answers = self.queue.answers - since
        state, by_whom = self._accounted.get(job_id, ("", ""))
        if state in ENDED_STATES:
            return Look(state, True, by_whom=by_whom)
        patience = 5 if self.accounting else 3
        return Look("LOST", True) if answers >= patience else None

    def cancel(self, entries: Sequence[Entry]) -> None:
        job_ids = sorted(entry.job_id for entry in entries if entry.job_id)
        for start in range(0, len(job_ids), 500):
            ask(["scancel", *job_ids[start : start + 500]])

    def line(self, job_id: str) -> Line | None:
        """squeue's line of a job."""
        return self.queue.lines.get(job_id)


class LocalBackend(Backend):
    """This machine: every job is a process of its own that survives the head."""

    name = "local"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self._jobs: dict[str, Any] = {}

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        from submitit.local.local import LocalExecutor

        executor = LocalExecutor(self.folder, max_num_timeout=NEVER_BY_SUBMITIT)
        executor.update_parameters(
            timeout_min=self.minutes(request),
            signal_delay_s=self.settings.signal_seconds,
            gpus_per_node=request.gpu,
            tasks_per_node=1,
            setup=[self.settings.setup] if self.settings.setup else (),
        )
        with unheard_interrupts():
            submitted = [executor.submit(job) for job in jobs]
        self._jobs.update({job.job_id: job for job in submitted})
        return [job.job_id for job in submitted]

    def look(self, entry: Entry) -> Look | None:
        if (job := self._jobs.get(entry.job_id or "")) is not None:
            return Look("RUNNING") if job.state == "RUNNING" else Look("FAILED", True)
        return Look("RUNNING") if controllers(entry) else Look("FAILED", True)

    def cancel(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            for controller in controllers(entry):
                end_family(controller.pid)

    def cancel_command(self, entries: Sequence[Entry]) -> str:
        return "kill -TERM " + " ".join(entry.job_id or "" for entry in entries)


class DebugBackend(Backend):
    """This process: the poller runs one job after the other."""

    name = "debug"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self._jobs: dict[str, Any] = {}
        self._results: dict[str, Result] = {}

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        from submitit.local.debug import DebugExecutor

        executor = DebugExecutor(self.folder)
        submitted = [executor.submit(job) for job in jobs]
        self._jobs.update({job.job_id: job for job in submitted})
        return [job.job_id for job in submitted]

    def look(self, entry: Entry) -> Look | None:
        job = self._jobs.pop(entry.job_id or "", None)
        if job is None:
            return Look("FAILED", True)
        try:
            job.submission().result()
            self._results[job.job_id] = Result(None)
        except Exception as error:
            self._results[job.job_id] = Result(f"{type(error).__name__}: {error}")
        return Look("COMPLETED", True)

    def result(self, entry: Entry) -> Result | None:
        return self._results.get(entry.job_id or "")

    def cancel(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._jobs.pop(entry.job_id or "", None)


BACKENDS: dict[str, type[Backend]] = {"slurm": SlurmBackend, "local": LocalBackend, "debug": DebugBackend}


def make_backend(settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> Backend:
    """The backend that the settings name; its name has been checked before."""
    return BACKENDS[settings.cluster](settings, folder, say)


def mark(token: str) -> str:
    """The comment by which a job is found again in the queue."""
    return f"snakemake-submitit:{token}"


@contextmanager
def unheard_interrupts() -> Iterator[None]:
    """Start processes that a Ctrl-C in this terminal, or closing it, does not end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def controllers(entry: Entry) -> list[Any]:
    """The process that controls a local job, if it still runs and is really that."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        process = psutil.Process(int(entry.job_id or 0))
        ours = any("submitit.local._local" in word for word in process.cmdline())
        return [process] if ours and process.status() != psutil.STATUS_ZOMBIE else []
    except (psutil.Error, ValueError):
        return []


def end_family(pid: int, patience: float = 10.0) -> None:
    """End a process and its descendants: ask first, then kill."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    members = family(pid)
    for process in members:
        try:
            process.terminate()
        except psutil.Error:
            continue
    for process in psutil.wait_procs(members, timeout=patience)[1]:
        try:
            process.kill()
        except psutil.Error:
            continue

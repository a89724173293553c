"""The three clusters of submitit behind one face: submit, look, cancel."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_slots

from snakemake_executor_plugin_submitit.job import SnakemakeJob, family
from snakemake_executor_plugin_submitit.journal import JournalEntry
from snakemake_executor_plugin_submitit.queue import (
    Accounting,
    Queue,
    QueueLine,
    read_lines,
    squeue_command,
)
from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.requests import GPU_OPTIONS, Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import (
    Backoff,
    ClusterFacts,
    QueueFullError,
    SlurmBusyError,
    SlurmRefusedError,
    ask,
    ask_patiently,
    classify,
    clean_environment,
    explain_environment,
    queue_full,
    read_facts,
)

__all__ = ["Backend", "Look", "Result", "make_backend"]

UNLIMITED_MINUTES = 365 * 24 * 60
LOOKS_AFTER_A_CHANGE = 6
"""A folder's time of change is coarse: a file may come right after the look that the same time belongs to."""
START_S = 120.0
"""How much later than its entry in the journal the process of a local job may have begun."""
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


# A pickle can run any code when it is read, and a folder may be open to other users.
class PlainUnpickler(pickle.Unpickler):
    """Reads what jobs return, a word and a text or a dict of numbers; refuses everything that runs code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not expected in a result")


def untrusted(path: Path) -> str | None:
    """Why a result file is not read: its folder may be open to others. None if it is the user's own."""
    # Not stat: a link would lead to a file of somebody else's choice.
    status = path.lstat()
    if status.st_uid != os.getuid():
        return f"the result {path} belongs to another user: it is not read"
    if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IWOTH:
        return f"the result {path} is no plain file, or everybody may write to it: it is not read"
    return None


class Backend(ABC):
    """One of submitit's clusters."""

    name: str
    host: str | None = None
    cluster_name: str | None = None
    array_limit = 1
    accounting = False

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.folder = folder
        self.say = say
        self._distrusted: set[str] = set()
        self.records = folder.parent / "records"
        self.answers = 0
        self._results: set[str] = set()
        self._folder_state = (0, 0)
        for path in (folder, self.records):
            path.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Learn about the cluster; raises SlurmRefusedError or SlurmBusyError."""
        return

    def problems(self, request: Request) -> list[str]:
        """Why the cluster can never run a request, one line each."""
        return ["nodes: this cluster has only one"] if request.nodes > 1 else []

    def time_problems(self, request: Request) -> list[str]:
        """Why a job could never work under its time limit."""
        minutes, signal_s = self.minutes(request), self.signal_seconds(request)
        if 60 * minutes > signal_s:
            return []
        return [
            f"runtime: {minutes} minutes are over before the warning {signal_s} s ahead of the time limit: "
            "raise runtime, or lower --submitit-signal-seconds and the resource signal_seconds"
        ]

    def minutes(self, request: Request) -> int:
        """The time limit that a job will have."""
        return request.runtime or UNLIMITED_MINUTES

    def signal_seconds(self, request: Request) -> int:
        """How long before its time limit a job is asked to save: the settings' time, or its own if longer."""
        return max(self.settings.signal_seconds, request.signal_seconds)

    @abstractmethod
    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        """Submit jobs with equal requests and return their ids. Raises SlurmRefusedError."""

    def busy(self) -> bool:
        """Whether jobs are in the queue that will make room for others."""
        return False

    def find(self, entry: JournalEntry) -> str | None:
        """Id of a job whose controller ended before it wrote it down: the job's own record may have it."""
        # The journal has no id for it, but a job that has started has written its own down.
        record = JobRecord.load(Path(entry.record))
        if record is None or not record.starts:
            return None
        return str(record.starts[-1]["job_id"])

    def name_files(self, entry: JournalEntry, job_id: str) -> None:
        """Note a job's id and where its files are."""
        paths = self.paths(job_id)
        entry.job_id = job_id
        entry.submission = str(paths.submission_file) if self.name == "slurm" else None
        entry.result = str(paths.result_pickle)
        if self.name != "debug":
            entry.log, entry.error_log = str(paths.stdout), str(paths.stderr)

    def restore_function(self, job_id: str, job: SnakemakeJob, request: Request) -> None:
        """Give a job its function again if the controller died before it could."""
        from submitit.core.utils import DelayedSubmission

        # submitit writes the function after sbatch has answered: a job without one fails at its start.
        path = self.paths(job_id).submitted_pickle
        if not path.exists():
            delayed = DelayedSubmission(job)
            delayed.set_timeout(self.minutes(request), NEVER_BY_SUBMITIT)
            temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
            # Written under another name first: the job may start at this moment and
            # must not read half a file.
            delayed.dump(temporary)
            temporary.replace(path)

    def refresh(self) -> None:
        """Learn the state of all jobs, if it is time to; `answers` counts what was learnt."""
        self.answers += 1

    @abstractmethod
    def look(self, entry: JournalEntry) -> Look | None:
        """The state of one job; None if nothing is known at the moment."""

    @abstractmethod
    def cancel(self, entries: Sequence[JournalEntry]) -> None:
        """End jobs for good."""

    def cancel_command(self, entries: Sequence[JournalEntry]) -> str:
        """What a user types to end jobs."""
        return "scancel " + " ".join(sorted({(entry.job_id or "").split("_")[0] for entry in entries}))

    def paths(self, job_id: str) -> Any:
        """Where submitit keeps the files of a job."""
        from submitit.core.utils import JobPaths

        return JobPaths(self.folder, job_id)

    def result(self, entry: JournalEntry) -> Result | None:
        """What the job's function has returned, if it has."""
        # A file may be missing, half written or damaged: all of these mean that nobody knows yet.
        path = Path(entry.result or "")
        try:
            if problem := untrusted(path):
                # Said once: the file is met again at every look.
                if problem not in self._distrusted:
                    self._distrusted.add(problem)
                    self.say(problem)
                return None
            with path.open("rb") as stream:
                outcome, value = PlainUnpickler(stream).load()
        except (OSError, EOFError, ValueError, TypeError, pickle.UnpicklingError):
            return None
        return Result(None if outcome == "success" else str(value))

    def hurry(self) -> None:
        """Make the next refresh ask at once."""
        return

    def forget(self, entry: JournalEntry) -> None:
        """Remove what nobody needs once a job has ended well; its logs stay."""
        if entry.job_id and entry.result:
            self.paths(entry.job_id).submitted_pickle.unlink(missing_ok=True)
        self.drop_result(entry)

    def drop_result(self, entry: JournalEntry) -> None:
        """Remove a result that has been judged: no later start of this or another job must meet it."""
        # Numbers of processes, and of jobs on a wiped cluster, come again and with them the names of files.
        if entry.result:
            Path(entry.result).unlink(missing_ok=True)

    def results_present(self) -> set[str]:
        """Names of all result files, by one look into the folder if it has changed lately."""
        # Thousands of jobs are followed by one look into the folder; a stat of each
        # result file costs too much.
        changed, looks = self.folder.stat().st_mtime_ns, 0
        if changed == self._folder_state[0]:
            looks = self._folder_state[1] + 1
        self._folder_state = (changed, looks)
        if looks <= LOOKS_AFTER_A_CHANGE:
            with os.scandir(self.folder) as files:
                self._results = {file.name for file in files if file.name.endswith("_result.pkl")}
        return self._results


class SlurmBackend(Backend):
    """Slurm: sbatch through submitit, one squeue per interval, sacct only for what squeue has forgotten."""

    name = "slurm"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self.queue = Queue(settings.poll_seconds, say)
        self.facts: ClusterFacts | None = None
        self._gpu_option = settings.gpu_option
        self._missing: dict[str, int] = {}
        self._accounting = Accounting()

    def prepare(self) -> None:
        # Said before any of them is called: on a machine without Slurm the hint is
        # worth more than the error.
        missing = [
            command for command in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(command) is None
        ]
        if missing:
            raise SlurmRefusedError(
                f"the command {missing[0]} is not on PATH: is this a login node of a Slurm cluster? "
                "Without Slurm use --submitit-cluster local"
            )
        # The clients are called without these variables: a user who counts on one must learn of it.
        for line in explain_environment():
            self.say(line)
        self.facts = read_facts(self.say)
        self.cluster_name = self.facts.name or None
        self.accounting = self.facts.accounting
        # Indices begin at 0 and MaxArraySize is one more than the largest that Slurm takes.
        self.array_limit = max(1, min(self.settings.array_size, self.facts.max_array_size - 1))

    def problems(self, request: Request) -> list[str]:
        if self.facts is None:
            return []
        return [*self.facts.problems(request), *self.time_problems(request)]

    def minutes(self, request: Request) -> int:
        limit = request.runtime if self.facts is None else self.facts.minutes(request)
        return limit or UNLIMITED_MINUTES

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        # A controller that is itself a job of Slurm gets SIGTERM; it must be heard
        # while sbatch is tried again.
        with sigterm_as_interrupt():
            return self._submit_until_taken(jobs, request, name, token)

    def _submit_until_taken(
        self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str
    ) -> list[str]:
        backoff = Backoff(first=2.0)
        while True:
            try:
                return finish_call(lambda: self._submit_once(jobs, request, name, token))
            except SlurmBusyError as error:
                if backoff.failures == 0:
                    self.say(f"Slurm does not take jobs at the moment ({error}); trying again until it does.")
            # A request that timed out may have been taken: to submit again without a
            # look would run the jobs twice.
            if job_ids := self._submitted_all_the_same(jobs, request, token, backoff):
                return job_ids

    def _submit_once(
        self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str
    ) -> list[str]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self.executor(request, name, token, len(jobs))
        # submitit calls sbatch with this process's environment.
        try:
            with clean_environment():
                if len(jobs) == 1:
                    submitted = [executor.submit(jobs[0])]
                else:
                    submitted = executor.submit_array(list(jobs))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            # A full queue empties by itself, so it is no refusal: the caller waits or makes smaller arrays.
            if queue_full(str(error)):
                raise QueueFullError(f"sbatch: {' '.join(str(error).split())}") from None
            raise classify(str(error), "sbatch") from None
        # The last answer of squeue does not know these jobs, and must not be taken for their end.
        self.queue.hurry()
        return [job.job_id for job in submitted]

    def _submitted_all_the_same(
        self, jobs: Sequence[SnakemakeJob], request: Request, token: str, backoff: Backoff
    ) -> list[str] | None:
        """After sbatch failed without an answer the jobs may be in the queue all the same: ask squeue."""
        # Without an answer of squeue nobody knows, and a second submission would run the jobs twice.
        while True:
            time.sleep(backoff.failed())
            try:
                lines = {line.job_id: line for line in read_lines(ask(squeue_command()))}
                break
            except (SlurmBusyError, SlurmRefusedError):
                continue
        marked = [job_id for job_id, line in lines.items() if line.comment == mark(token)]
        if not marked:
            return None
        number, is_array, _ = marked[0].partition("_")  # tasks that have ended may be forgotten already
        job_ids = [number]
        if is_array:
            job_ids = [f"{number}_{index}" for index in range(len(jobs))]
        # submitit has failed before it wrote the functions, so the jobs in the queue have none yet.
        for job_id, job in zip(job_ids, jobs, strict=True):
            self.restore_function(job_id, job, request)
        return job_ids

    def executor(
        self, request: Request, name: str, token: str, count: int, gpu_option: str | None = None
    ) -> Any:
        """submitit's executor with all parameters of one submission."""
        from submitit.slurm.slurm import SlurmExecutor

        executor = SlurmExecutor(self.folder, max_num_timeout=NEVER_BY_SUBMITIT)
        parameters = request.parameters()
        # Always said: submitit's default of five minutes would hold otherwise, not the partition's.
        parameters["time"] = self.minutes(request)
        executor.update_parameters(
            **parameters,
            job_name=name,
            comment=mark(token),
            # submitit would name a key of its own, which a site that checks keys does not know.
            wckey=None,
            signal_delay_s=self.signal_seconds(request),
            array_parallelism=self.settings.array_throttle or count,
            setup=setup_lines(self.settings) or None,
            # the step keeps the job's environment, also if the site or the user asks for --export=NONE
            srun_args=["--nodes=1", "--ntasks=1", f"--cpus-per-task={request.cpus}", "--export=ALL"],
            # --requeue is said by each job, because a site may have switched it off by default.
            additional_parameters={
                "requeue": True,
                **request.options(self._gpu_option_for(request, name, gpu_option)),
            },
        )
        return executor

    def _gpu_option_for(self, request: Request, name: str, chosen: str | None) -> str:
        """How this cluster counts GPUs: as the settings say, else the first way that Slurm accepts."""
        if chosen or self._gpu_option != "auto" or request.gpu == 0:
            return chosen or self._gpu_option
        # Clusters differ in how they count GPUs; --test-only submits nothing, so each way can be tried.
        for option in GPU_OPTIONS:
            try:
                if self.try_submission(request, name, option) is None:
                    self._gpu_option = option
                    return option
            except SlurmBusyError:
                break
        return GPU_OPTIONS[0]

    def try_submission(self, request: Request, name: str, gpu_option: str | None = None) -> str | None:
        """Ask Slurm whether it would take a job (sbatch --test-only); None if it would, else its answer.

        Raises SlurmBusyError if it gives none.
        """
        # The very script that would be submitted: a shorter one would miss what the site refuses.
        executor = self.executor(request, name, "test", 1, gpu_option)
        text = executor._make_submission_file_text("true", "test")
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(text)
            script.flush()
            try:
                ask_patiently(["sbatch", "--test-only", script.name], self.say, give_up_after=120.0)
            except SlurmRefusedError as error:
                return str(error)
        return None

    def busy(self) -> bool:
        self.queue.hurry()
        self.queue.refresh()
        return self.queue.answers == 0 or self.queue.waiting_or_running > 0

    def find(self, entry: JournalEntry) -> str | None:
        if self.queue.answers == 0:
            raise SlurmBusyError("squeue has not answered yet")
        return self.queue.marked(mark(entry.token)).get(entry.index) or super().find(entry)

    def refresh(self) -> None:
        self.queue.refresh()
        if self.accounting:
            # Each sacct is a query of the cluster's database: asked only for jobs
            # that squeue has missed twice.
            if self.queue.answers + self._accounting.answers != self.answers:
                self._accounting.want(
                    job_id for job_id, since in self._missing.items() if self.queue.answers >= since + 2
                )
            self._accounting.refresh()
        self.answers = self.queue.answers + self._accounting.answers

    def hurry(self) -> None:
        self.queue.hurry()

    def look(self, entry: JournalEntry) -> Look | None:
        job_id = entry.job_id or ""
        line = self.queue.lines.get(job_id)
        if line is None or of_another(line, entry):
            return self._look_back(entry)
        self._missing.pop(job_id, None)
        if line.state != "CANCELLED":
            return Look(line.state, line.ended, line.reason, line.node)
        # squeue says CANCELLED for the user's scancel and for an administrator's alike.
        self._accounting.want([job_id])  # it knows by whom; until it is asked again, nobody
        return Look(line.state, line.ended, line.reason, line.node, self._accounting.end_of(job_id).by_whom)

    def _look_back(self, entry: JournalEntry) -> Look | None:
        """A job that squeue does not show: too new, or ended and forgotten."""
        job_id = entry.job_id or ""
        # A new job may not be in an answer that was under way when it was submitted.
        since = self._missing.setdefault(job_id, self.queue.answers)
        answers = self.queue.answers - since
        # The name must match too: a wiped cluster begins its numbers again.
        end = self._accounting.end_of(job_id)
        if end.state and end.name == entry.rule:
            return Look(end.state, True, by_whom=end.by_whom)
        # With accounting there is a better witness, which may come late: it gets two answers more.
        patience = 5 if self.accounting else 3
        return Look("LOST", True) if answers >= patience else None

    def cancel(self, entries: Sequence[JournalEntry]) -> None:
        job_ids = sorted(entry.job_id for entry in entries if entry.job_id)
        # A command line has a largest length, and thousands of jobs would be longer.
        for start in range(0, len(job_ids), 500):
            ask(["scancel", *job_ids[start : start + 500]])


class LocalBackend(Backend):
    """This machine: every job is a process of its own that survives the controller."""

    name = "local"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self.host = socket.gethostname()
        self._jobs: dict[str, Any] = {}
        # Jobs get these by name: submitit replaces the CUDA_VISIBLE_DEVICES that the user may have set.
        self._gpus = gpu_slots.devices(os.environ, settings.gpus)
        os.environ[gpu_slots.CHOSEN] = ",".join(self._gpus)

    def problems(self, request: Request) -> list[str]:
        problems = [*super().problems(request), *self.time_problems(request)]
        if self._gpus and request.gpu > len(self._gpus):
            problems.append(f"gpu={request.gpu} is more than this machine offers: {', '.join(self._gpus)}")
        return problems

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        from submitit.local.local import LocalExecutor

        executor = LocalExecutor(self.folder, max_num_timeout=NEVER_BY_SUBMITIT)
        executor.update_parameters(
            timeout_min=self.minutes(request),
            signal_delay_s=self.signal_seconds(request),
            tasks_per_node=1,  # the job takes its GPUs itself, when they are free (gpu_slots)
            setup=setup_lines(self.settings),
        )
        # Jobs must go on when Snakemake ends, so a Ctrl-C of the terminal must not reach them.
        with unheard_interrupts():
            submitted = [executor.submit(job) for job in jobs]
        for job in submitted:  # process numbers are used again: this may be the file of an old job
            self.paths(job.job_id).result_pickle.unlink(missing_ok=True)
        self._jobs.update({job.job_id: job for job in submitted})
        return [job.job_id for job in submitted]

    def look(self, entry: JournalEntry) -> Look | None:
        # Our own children become zombies, which have no command line: submitit knows
        # of them, psutil does not.
        if (job := self._jobs.get(entry.job_id or "")) is not None:
            runs = job.state == "RUNNING"
        else:
            runs = bool(local_processes(entry, self.folder))
        return Look("RUNNING") if runs else Look("FAILED", True)

    def cancel(self, entries: Sequence[JournalEntry]) -> None:
        for entry in entries:
            # The program is a grandchild and ignores SIGTERM until it has its
            # handlers: all of them are ended.
            for process in local_processes(entry, self.folder):
                end_family(process.pid)

    def cancel_command(self, entries: Sequence[JournalEntry]) -> str:
        return "kill -TERM " + " ".join(entry.job_id or "" for entry in entries)


class DebugBackend(Backend):
    """This process: the poller runs one job after the other."""

    name = "debug"

    def __init__(self, settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(settings, folder, say)
        self._jobs: dict[str, Any] = {}
        self._outcomes: dict[str, Result] = {}

    def submit(self, jobs: Sequence[SnakemakeJob], request: Request, name: str, token: str) -> list[str]:
        from submitit.local.debug import DebugExecutor

        executor = DebugExecutor(self.folder)
        submitted = [executor.submit(job) for job in jobs]
        self._jobs.update({job.job_id: job for job in submitted})
        return [job.job_id for job in submitted]

    def look(self, entry: JournalEntry) -> Look | None:
        # The job runs here and now, so a second look at it must not run it again.
        job = self._jobs.pop(entry.job_id or "", None)
        if job is None:
            return Look("FAILED", True)
        try:
            job.submission().result()
            self._outcomes[job.job_id] = Result(None)
        except Exception as error:
            self._outcomes[job.job_id] = Result(f"{type(error).__name__}: {error}")
        return Look("COMPLETED", True)

    def result(self, entry: JournalEntry) -> Result | None:
        return self._outcomes.get(entry.job_id or "")

    def cancel(self, entries: Sequence[JournalEntry]) -> None:
        for entry in entries:
            self._jobs.pop(entry.job_id or "", None)


BACKENDS: dict[str, type[Backend]] = {"slurm": SlurmBackend, "local": LocalBackend, "debug": DebugBackend}


def make_backend(settings: ExecutorSettings, folder: Path, say: Callable[[str], None]) -> Backend:
    """The backend that the settings name; its name has been checked before."""
    return BACKENDS[settings.cluster](settings, folder, say)


def mark(token: str) -> str:
    """The comment by which a job is found again in the queue."""
    return f"snakemake-submitit:{token}"


def of_another(line: QueueLine, entry: JournalEntry) -> bool:
    """Whether the queue shows another job under an entry's number: ids begin again on a wiped controller.

    The comment is the mark of our submission; if a site replaces comments, the name must do.
    """
    if line.comment == mark(entry.token):
        return False
    # A comment of ours with another mark is surely another job; one that the site wrote says nothing.
    return line.comment.startswith(mark("")) or line.name != entry.rule


def setup_lines(settings: ExecutorSettings) -> list[str]:
    """The user's line that every job runs first; the job fails with it."""
    if not settings.setup:
        return []
    # submitit puts the line into the script as it is, and a shell goes on after a line that has failed.
    failed = 'echo "--submitit-setup failed with exit code $code" >&2'
    return [f"{{ {settings.setup}\n}} || {{ code=$?; {failed}; exit $code; }}"]


def finish_call(call: Callable[[], list[str]], patience: float = 10.0) -> list[str]:
    """Call sbatch so that Ctrl-C ends neither it nor the waiting at once, but is heard if it hangs.

    The call runs in a thread whose programs do not receive the signal: a submission is not cut in two. After
    Ctrl-C it has some seconds to end; then its programs are killed, and squeue knows whether jobs came of it.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: Future[list[str]] = Future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # programs inherit this
        # A thread, because the main one alone hears Ctrl-C and would cut sbatch between request and answer.
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=work, daemon=True).start()
        return outcome.result()
    except KeyboardInterrupt:
        # sbatch may be about to answer: a job whose id is known can be named to the user.
        with suppress(Exception):
            outcome.result(timeout=patience)
        if not outcome.done():
            kill_programs("sbatch")
        raise


def kill_programs(name: str) -> None:
    """Kill the programs of a name that this process has started."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    for process in psutil.Process().children():
        with suppress(psutil.Error):
            # sbatch may be a wrapper script of the site: the process then bears the
            # name of its interpreter.
            if name in (process.name(), *(os.path.basename(word) for word in process.cmdline()[:2])):
                process.kill()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """While jobs are submitted SIGTERM ends Snakemake as Ctrl-C does; its own handler would not be seen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Snakemake's handler only notes the signal, and looks at the note when the submission is over.
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def unheard_interrupts() -> Iterator[None]:
    """Start processes that a Ctrl-C in this terminal, or closing it, does not end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ignored signals are inherited by what is started meanwhile; a new handler would not be.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def local_processes(entry: JournalEntry, folder: Path) -> list[Any]:
    """The process that controls a local job, if it still runs and is really that: numbers are used again."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        process = psutil.Process(int(entry.job_id or 0))
        words = " ".join(process.cmdline())
        # A process that began later than its job was submitted has only got the same number.
        at_that_time = process.create_time() - entry.submitted <= START_S
        ours = "submitit.local._local" in words and str(folder) in words and at_that_time
        return [process] if ours and process.status() != psutil.STATUS_ZOMBIE else []
    except (psutil.Error, ValueError):
        return []


def end_family(pid: int, patience: float = 10.0) -> None:
    """End a process and its descendants: ask first, then kill."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    # Listed before the first has ended: the children of an ended process are no longer found below it.
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

"""The executor: submits Snakemake's jobs, or finds them in the queue, and reports how they have ended."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface  # type: ignore[import-untyped, unused-ignore]

from snakemake_executor_plugin_submitit import controller
from snakemake_executor_plugin_submitit.backends import Backend, make_backend
from snakemake_executor_plugin_submitit.dryrun import try_submissions
from snakemake_executor_plugin_submitit.journal import Journal, JournalEntry, sweep
from snakemake_executor_plugin_submitit.probe import shared_folder_problem, unwritable
from snakemake_executor_plugin_submitit.reattach import EarlierJobs
from snakemake_executor_plugin_submitit.requests import Request, RequestError
from snakemake_executor_plugin_submitit.settings import ExecutorSettings, setting_problems
from snakemake_executor_plugin_submitit.slurm import (
    Backoff,
    QueueFullError,
    SlurmBusyError,
    SlurmRefusedError,
)
from snakemake_executor_plugin_submitit.tracker import Tracker
from snakemake_executor_plugin_submitit.workflow_jobs import (
    RequestReader,
    all_exist,
    asked_as_unfinished,
    fingerprint,
    key_of,
    make_entry,
    make_submitted,
    outputs_of,
    title_of,
)

__all__ = ["Executor"]

# Results are files, and looking for them is cheap: a finished job is seen at once, not at the next squeue.
TICK_S = 0.5
LONGEST_FAILURE_S = 600.0


class Executor(RemoteExecutor):  # type: ignore[misc]
    """Snakemake's jobs through submitit."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        self._stopping = threading.Event()  # the poller begins before __post_init__
        super().__init__(workflow, logger)

    def __post_init__(self) -> None:
        """Check everything that can be checked before the first job is submitted."""
        self.settings: ExecutorSettings = self.executor_settings or ExecutorSettings()
        self.folder = controller.FOLDER.absolute()
        self.followed: dict[str, JournalEntry] = {}
        self._tokens: set[str] = set()
        self._scripts: Path | None = None
        self._failures = 0
        self._failing_since: float | None = None
        self._failed = False

        # What is wrong with the settings or this machine, before the cluster is asked anything.
        if problems := setting_problems(self.settings):
            raise WorkflowError("\n".join(problems))
        require_submitit()
        if problem := unwritable(self.folder):
            raise WorkflowError(problem)

        # The parts; the cluster is asked whether the rules' requests can ever be met.
        self.journal = Journal(self.folder / "journal")
        self.backend: Backend = make_backend(self.settings, self.folder / "jobs", self.say)
        latency_wait = float(self.workflow.execution_settings.latency_wait or 0)
        self.tracker = Tracker(self.backend, self.journal, self.say, latency_wait=latency_wait)
        self.requests = RequestReader(self.workflow, self.settings)
        self._check()

        # The folder is this controller's now: earlier jobs must be known before any is submitted.
        controller.note_controller(self.folder)
        self.earlier = EarlierJobs(self.backend, self.tracker, self.journal, self.say)
        self.earlier.find_out()
        if self.settings.keep_days:
            sweep(self.folder, self.journal, self.settings.keep_days)

    def say(self, message: str) -> None:
        """Report something to the user in one line."""
        self.logger.warning(f"submitit: {message}")

    def _check(self) -> None:
        """Refuse what can never work, with one line per problem."""
        # Only what will be submitted: a rule whose outputs are there may ask for what it likes.
        jobs = [job for job in self.workflow.dag.needrun_jobs() if not job.is_local]
        requests, problems = self.requests.requests_of_rules(jobs)
        if ignored := self.requests.explain_ignored():
            self.say(ignored)
        try:
            self.backend.prepare()
        # With the rules' problems, so that one failed call shows everything there is to fix.
        except (SlurmRefusedError, SlurmBusyError) as error:
            raise WorkflowError("\n".join([str(error), *problems])) from None
        problems += [f"rule {rule}: {line}" for request, rule in requests.items()
                     for line in self.backend.problems(request)]  # fmt: skip
        # Asked last, because it takes longest and what cannot run anyway need not be asked about.
        if requests and not problems and self.settings.cluster == "slurm":
            problems += self._ask_slurm(requests)
        if problems:
            raise WorkflowError("\n".join(dict.fromkeys(problems)))

    def _ask_slurm(self, requests: dict[Request, str]) -> list[str]:
        if self.settings.test_only:
            return try_submissions(self.backend, requests, self.say)
        # One request is enough: all rules work in the same folder, and each question waits for a free node.
        if self.settings.shared_folder_check == "yes":
            problem = shared_folder_problem(self.folder, next(iter(requests)))
            return [problem] if problem else []
        return []

    # Re-attaching to jobs of an earlier controller

    def _reattach(self, job: JobExecutorInterface) -> bool:
        """Take over the job of an earlier controller instead of submitting a second one."""
        # Known by the outputs, not only by the key: the earlier call may have
        # grouped its jobs in another way.
        outputs = outputs_of(job)
        making = self.earlier.jobs_making(key_of(job), outputs)
        if (conflict := self.earlier.conflict(making, outputs)) is not None:
            self._refuse(job, f"{job.name}: {conflict}")
            return True

        # An active job is taken over. One that has ended well is done, unless it is to be made anew.
        active = [entry for entry in making if entry.active]
        if not making and key_of(job) in self.earlier.damaged:
            return self._recover(job)
        if active:
            self._take_over(job, active[0])
        elif making and asked_as_unfinished(self.workflow, job) and all_exist(job):
            self._report(job, making[0])  # done since Snakemake has looked at its files
        else:
            for entry in making:
                self.earlier.drop(entry)
            return False
        return True

    def _recover(self, job: JobExecutorInterface) -> bool:
        """The journal's file of a job is damaged: look for the job under the mark of its submission."""
        key = key_of(job)
        path = self.journal.path(key)
        # First, because _reattach is called again at the end and would come back here.
        self.earlier.damaged.discard(key)
        # The mark of the submission lies in a file of its own, which the damage has not met.
        submission = self.journal.submission_of(key)
        if submission is None:
            self.say(f"{path} is damaged and of no known submission: {job.name} is submitted.")
            return False
        self.say(f"{path} is damaged: looking for the job of {job.name} before it is submitted again.")
        token, index = submission
        request = self.requests.request_of(job)
        # An entry is made anew as for a submission: what the old one said can no longer be read.
        script = self.get_jobscript(job)
        self.write_jobscript(job, script)
        entry = make_entry(job, request, self.backend, script=script, token=token, index=index)
        self.earlier.add(entry)
        self.earlier.find_out()
        return self._reattach(job)

    def _take_over(self, job: JobExecutorInterface, entry: JournalEntry) -> None:
        if entry.fingerprint != fingerprint(job):
            self.say(
                f"{entry.name}: job {entry.job_id} was submitted with another command or other parameters; "
                f"it goes on as it is. To start anew: {self.backend.cancel_command([entry])}"
            )
        # The controller may have died between sbatch's answer and the writing of the job's function.
        if self.settings.cluster == "slurm":
            self._restore(job, entry)
        self.logger.info(f"submitit: re-attached to job {entry.job_id} ({entry.name}) of an earlier call.")
        self._report(job, entry)

    def _restore(self, job: JobExecutorInterface, entry: JournalEntry) -> None:
        # Slurm may start the job again much later, and it then needs its script at the old path.
        if not Path(entry.script).exists():
            Path(entry.script).parent.mkdir(parents=True, exist_ok=True)
            self.write_jobscript(job, entry.script)
        request = self.requests.request_of(job)
        submitted = make_submitted(job, entry, request, self.backend, self.tracker.latency_wait)
        self.backend.restore_function(entry.job_id or "", submitted, request)

    # Submitting

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit one job."""
        self.run_jobs([job], announce=False)

    def run_jobs(self, jobs: Sequence[JobExecutorInterface], announce: bool = True) -> None:
        """Submit ready jobs: those with equal requests as arrays, the others one by one."""
        groups: dict[tuple[Request, str], list[JobExecutorInterface]] = defaultdict(list)
        for job in jobs:
            if announce:
                self.run_job_pre(job)
            # Before the request is read: a job that runs already goes on, whatever
            # its rule asks for by now.
            if self._reattach(job):
                continue
            try:
                groups[self.requests.request_of(job), job.name].append(job)
            except RequestError as error:
                self._refuse(job, str(error))
        for (request, name), members in groups.items():
            self._submit_all(request, name, members)

    def additional_general_args(self) -> str:
        """Options of a job's own Snakemake: one job needs neither a rate limit nor a solver.

        Snakemake ends no earlier than the timer of its rate limit, which is a second after the job's start.
        """
        return "--max-jobs-per-timespan 1000/0s --scheduler greedy"

    def _submit_all(self, request: Request, name: str, jobs: Sequence[JobExecutorInterface]) -> None:
        """Submit jobs in arrays, smaller ones if the queue has no room for a large one."""
        # The size stays small once the queue has refused a large array: the next one
        # would be refused as well.
        waiting, size, backoff = list(jobs), self.backend.array_limit, Backoff(first=5.0)
        while waiting:
            chunk = waiting[:size]
            try:
                self._submit(request, name, chunk)
            except QueueFullError as error:
                if len(chunk) > 1:
                    size = len(chunk) // 2
                elif not self._wait_for_room(str(error), backoff):
                    self._refuse_all(waiting, error)
                    return
            else:
                del waiting[:size]
                backoff.answered()

    def _wait_for_room(self, answer: str, backoff: Backoff) -> bool:
        """Wait a while for jobs to leave the queue; False if there are none that could."""
        # A limit of the group is met by other people's jobs, which this user's squeue does not show.
        if not (self.followed or "grp" in answer.lower() or self.backend.busy()):
            return False
        if backoff.failures == 0:
            self.say(f"your share of the queue is full ({answer}); the other jobs follow when it is not.")
        time.sleep(backoff.failed())
        return True

    def _refuse_all(self, jobs: Sequence[JobExecutorInterface], error: Exception) -> None:
        for job in jobs:
            # An entry left in this state would make the next call wait for a job that does not exist.
            if (entry := self.journal.read(key_of(job))) is not None and entry.state == "SUBMITTING":
                self._end(entry, "FAILED", str(error))
            self._refuse(job, f"{job.name} was not taken: {error}")

    def _submit(self, request: Request, name: str, jobs: Sequence[JobExecutorInterface]) -> None:
        """Submit one job or array, but for what another controller has submitted; raises QueueFullError."""
        # Every submission has a mark of its own: a job is found by it when sbatch has not answered.
        token = uuid.uuid4().hex[:16]
        self._tokens.add(token)

        # Looking and noting under one lock: of two controllers only one finds a job not submitted yet.
        with self.journal.locked():
            theirs = [(job, entry) for job in jobs if (entry := self._entry_of_another(job)) is not None]
            taken = [job for job, _ in theirs]
            mine = [job for job in jobs if job not in taken]
            entries = self._note(request, token, mine) if mine else []
        if mine:
            self._submit_noted(request, name, token, mine, entries)

        # The other one's jobs are followed like those of an earlier call.
        for job, entry in theirs:
            self.say(f"{entry.name} was submitted by another Snakemake a moment ago: waiting for its job.")
            self.earlier.add(entry)
            self.earlier.find_out()
            if not self._reattach(job):
                self._submit_all(request, name, [job])

    def _entry_of_another(self, job: JobExecutorInterface) -> JournalEntry | None:
        """The entry of a job that another controller has submitted since this one has read the journal."""
        key = key_of(job)
        # Jobs that this controller knows were judged already; only what has come since is another's.
        if key in self.followed or key in self.earlier.entries:
            return None
        entry = self.journal.read(key)
        if entry is None or not entry.active or entry.token in self._tokens:
            return None
        return entry

    def _note(self, request: Request, token: str, jobs: Sequence[JobExecutorInterface]) -> list[JournalEntry]:
        """Write scripts and journal of jobs that are about to be submitted."""
        # All is on disk before sbatch is called: a controller that dies then has lost nothing.
        self.journal.note_submission(token, [key_of(job) for job in jobs])
        entries = []
        for index, job in enumerate(jobs):
            script = self.get_jobscript(job)
            self.write_jobscript(job, script)
            # A single job has no index in Slurm either, and its id is found without one.
            index_in_array = index if len(jobs) > 1 else None
            entry = make_entry(job, request, self.backend, script=script, token=token, index=index_in_array)
            entries.append(entry)
            self.followed[entry.key] = entry
            self.journal.write(entry)
        return entries

    def _submit_noted(
        self,
        request: Request,
        name: str,
        token: str,
        jobs: Sequence[JobExecutorInterface],
        entries: list[JournalEntry],
    ) -> None:
        latency_s = self.tracker.latency_wait
        submitted = [
            make_submitted(job, entry, request, self.backend, latency_s)
            for job, entry in zip(jobs, entries, strict=True)
        ]
        title = title_of(jobs[0]) if len(jobs) == 1 else name
        try:
            job_ids = self.backend.submit(submitted, request, title, token)
        except SlurmRefusedError as error:
            for entry in entries:
                del self.followed[entry.key]
            # No refusal of the job: the caller tries again, with a smaller array or later.
            if isinstance(error, QueueFullError):
                raise
            self._refuse_all(jobs, error)
            return
        for job, entry, job_id in zip(jobs, entries, job_ids, strict=True):
            # Noted before Snakemake hears of the job: from here on the next call finds it by its id.
            self.backend.name_files(entry, job_id)
            entry.state = "PENDING"
            self.journal.write(entry)
            self._report(job, entry)
        self.logger.info(f"submitit: submitted {name}: {describe_ids(job_ids)}")

    def _report(self, job: JobExecutorInterface, entry: JournalEntry) -> None:
        # First, so that the poller never meets a job that is not followed.
        self.followed[entry.key] = entry
        self.tracker.expect()
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=entry.job_id, aux={"entry": entry}))

    def _refuse(self, job: JobExecutorInterface, message: str) -> None:
        self._failed = True
        self.report_job_error(SubmittedJobInfo(job), msg=message)

    # Following

    async def sleep(self) -> None:
        """A short tick: results are looked for often, Slurm is asked at its own interval."""
        self._stopping.wait(TICK_S)  # nothing else runs in the poller's event loop

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that have ended and yield the others."""
        if not active_jobs:  # perhaps this executor is not even made
            return
        failures = self._failures
        # Without news no verdict can change, and thousands of jobs cost nothing.
        news = self._looked_around() and not self.tracker.quiet
        for info in active_jobs:
            if not (news and self.wait and self._ended(info)):
                yield info
        self.tracker.report_waiting()
        if self._failures == failures:
            self._failing_since = None

    def _looked_around(self) -> bool:
        try:
            self.tracker.look_around()
        # Snakemake's poller thread dies silently of an exception, and the workflow would wait for ever.
        except Exception as error:
            self._note_error(error)
            return False
        return True

    def _ended(self, info: SubmittedJobInfo) -> bool:
        entry: JournalEntry = info.aux["entry"]
        try:
            verdict = self.tracker.judge(entry)
        # As above: one job that cannot be judged now must not end the poller for all.
        except Exception as error:
            self._note_error(error)
            return False
        if verdict is None:
            return False
        # Dropped, so that a retry of the same job is a new one and not taken for the one that has ended.
        self.followed.pop(entry.key, None)
        self.earlier.drop(entry)
        if verdict.ok:
            self.report_job_success(info)
        else:
            self._failed = True
            logs = [path for path in (entry.error_log, entry.log) if path and Path(path).exists()]
            self.report_job_error(info, msg=verdict.message, aux_logs=logs)
        return True

    def _note_error(self, error: Exception) -> None:
        """A full disk, or an error of our own, ends the controller only if it lasts."""
        now = time.monotonic()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
            self.say(f"could not follow the jobs ({type(error).__name__}: {error}); trying again.")
        if now - self._failing_since > LONGEST_FAILURE_S:
            raise error

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Show a failed job with everything a person needs."""
        # Snakemake's own report of a group leaves the message out.
        if job_info.job.is_group():
            self.logger.error(msg)
        job_info.job.log_error(msg=msg, external_jobid=job_info.external_jobid, **kwargs)

    # Ending

    def cancel(self) -> None:
        """Ctrl-C: leave the jobs in the queue or cancel them, as the settings say."""
        self._stop_following()
        # A job without an id can be neither cancelled nor named to the user.
        self._find_unnamed()
        if self.settings.on_interrupt == "cancel":
            self._cancel(list(self.followed.values()))
        left = self._close()
        if left is None:
            return
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
            # Snakemake would end with "At least one job did not complete successfully"
            raise WorkflowError(f"Interrupted: {left}") from None
        self.say(left)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """End submitted jobs for good."""
        self._cancel([info.aux["entry"] for info in active_jobs])

    def _cancel(self, entries: list[JournalEntry]) -> None:
        if not entries:
            return
        self._failed = True
        try:
            self.backend.cancel(entries)
        except (SlurmBusyError, SlurmRefusedError) as error:
            self.say(f"could not cancel ({error}); later: {self.backend.cancel_command(entries)}")
            return
        for entry in entries:
            self._end(entry, "CANCELLED", "cancelled by Ctrl-C")

    def _find_unnamed(self) -> None:
        """Ctrl-C during a submission: the jobs are in the queue, or they never came so far."""
        unnamed = [entry for entry in self.followed.values() if entry.job_id is None]
        if not unnamed:
            return
        try:
            # The last answer of squeue is older than the submission that was cut.
            self.backend.hurry()
            self.backend.refresh()
            for entry in unnamed:
                if (job_id := self.backend.find(entry)) is not None:
                    self.backend.name_files(entry, job_id)
                    self.journal.write(entry)
        except (SlurmBusyError, SlurmRefusedError) as error:
            self.say(f"jobs of the last moment may be in the queue ({error}); the next call finds them.")

    def _end(self, entry: JournalEntry, state: str, message: str) -> None:
        """Note the end of a job that is no longer followed."""
        self.followed.pop(entry.key, None)
        entry.state, entry.message = state, message
        self.journal.write(entry)

    def _stop_following(self) -> None:
        """End the poller, so that nobody else reads or writes what is known of the jobs."""
        with self.lock:
            self.wait = False
        self._stopping.set()
        self.wait_thread.join()

    def shutdown(self) -> None:
        """Stop the poller; scripts stay as long as a job may still need them."""
        if (left := self._close()) is not None:
            self.say(left)

    def _close(self) -> str | None:
        """Stop following; a sentence about the jobs that go on, if any do."""
        self._stop_following()
        # A job may start again and needs its script then; the report of a failed job names the script.
        if self._scripts is not None and not self._failed and not self._scripts_in_use():
            shutil.rmtree(self._scripts, ignore_errors=True)
        controller.forget_controller(self.folder)
        left = [entry for entry in self.followed.values() if entry.job_id is not None]
        if not left:
            return None
        return (
            f"{len(left)} submitted jobs go on; the same command finds them again. "
            f"To cancel them: {self.backend.cancel_command(left)}"
        )

    def _scripts_in_use(self) -> bool:
        """Whether a job may still read a script of this controller."""
        return bool(self.followed) or any(entry.active for entry in self.journal.entries())

    @property
    def tmpdir(self) -> str:
        """Folder of this controller's job scripts: jobs that outlive the controller still find them."""
        if self._scripts is None:
            parent = self.folder / "scripts"
            parent.mkdir(parents=True, exist_ok=True)
            self._scripts = Path(tempfile.mkdtemp(dir=parent, prefix=time.strftime("%Y%m%d-%H%M%S-")))
        return str(self._scripts)


def require_submitit() -> None:
    """Say in one line that submitit is missing."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise WorkflowError(f"submitit cannot be imported ({error}): pip install submitit") from None


def describe_ids(job_ids: Sequence[str]) -> str:
    """One job or one array, in Slurm's notation."""
    if len(job_ids) == 1:
        return f"job {job_ids[0]}"
    if "_" in job_ids[0]:
        return f"array {job_ids[0].split('_')[0]}_[0-{len(job_ids) - 1}]"
    return f"jobs {', '.join(job_ids)}"

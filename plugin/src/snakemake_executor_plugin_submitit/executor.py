"""The executor: takes Snakemake's jobs, submits or adopts them, and tells Snakemake how they have ended."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor  # type: ignore[import-untyped, unused-ignore]
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface  # type: ignore[import-untyped, unused-ignore]

from snakemake_executor_plugin_submitit import head
from snakemake_executor_plugin_submitit.backends import Backend, make_backend
from snakemake_executor_plugin_submitit.dryrun import request_of, requests_of_rules, try_submissions
from snakemake_executor_plugin_submitit.job import SnakemakeJob
from snakemake_executor_plugin_submitit.journal import Entry, Journal, make_key
from snakemake_executor_plugin_submitit.probe import shared_folder_problem
from snakemake_executor_plugin_submitit.requests import Request, RequestError
from snakemake_executor_plugin_submitit.settings import ExecutorSettings, setting_problems
from snakemake_executor_plugin_submitit.slurm import Backoff, SlurmBusyError, SlurmRefusedError
from snakemake_executor_plugin_submitit.tracker import Tracker, Verdict

__all__ = ["Executor"]

TICK_S = 0.5
MOST_ERRORS = 20


class Executor(RemoteExecutor):  # type: ignore[misc]
    """Snakemake's jobs through submitit."""

    def __post_init__(self) -> None:
        """Check everything that can be checked before the first job is submitted."""
        self.settings: ExecutorSettings = self.executor_settings or ExecutorSettings()
        self.folder = head.FOLDER.absolute()
        self.head_started = head.started(os.getpid()) or time.time()
        self._scripts: Path | None = None
        self._errors = 0
        self._failed = False
        if problems := setting_problems(self.settings):
            raise WorkflowError("\n".join(problems))
        self._require_submitit()
        self.journal = Journal(self.folder / "journal")
        self.backend: Backend = make_backend(self.settings, self.folder / "jobs", self.say)
        self.tracker = Tracker(self.backend, self.journal, self.say)
        self._check()
        head.note_head(self.folder)
        self._find_earlier_jobs()

    def say(self, message: str) -> None:
        """Tell the user something in one line."""
        self.logger.warning(f"submitit: {message}")

    def _require_submitit(self) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise WorkflowError(f"submitit cannot be imported ({error}): pip install submitit") from None

    def _check(self) -> None:
        """Refuse what can never work, with one line per problem."""
        jobs = [job for job in self.workflow.dag.needrun_jobs() if not job.is_local]
        requests, problems = requests_of_rules(jobs, self._declared())
        try:
            self.backend.prepare()
        except (SlurmRefusedError, SlurmBusyError) as error:
            raise WorkflowError("\n".join([str(error), *problems])) from None
        problems += [f"rule {rule}: {line}" for request, rule in requests.items()
                     for line in self.backend.problems(request)]  # fmt: skip
        if requests and not problems and self.settings.cluster == "slurm":
            problems += self._ask_slurm(requests)
        if problems:
            raise WorkflowError("\n".join(dict.fromkeys(problems)))

    def _ask_slurm(self, requests: dict[Request, str]) -> list[str]:
        if self.settings.test_only:
            return try_submissions(self.backend, requests, self.say)
        if self.settings.shared_folder_check == "yes":
            problem = shared_folder_problem(self.folder, next(iter(requests)))
            return [problem] if problem else []
        return []

    def _declared(self) -> Iterable[str]:
        """Resources that the workflow limits itself."""
        return [str(name) for name in self.workflow.global_resources]

    # Adopting the jobs of an earlier head

    def _find_earlier_jobs(self) -> None:
        """Read which jobs an earlier head has left in the queue, waiting until Slurm can tell."""
        self.earlier = {entry.key: entry for entry in self.journal.entries() if entry.active}
        if not self.earlier:
            return
        backoff = Backoff()
        while not self._earlier_jobs_known():
            if backoff.failures == 0:
                self.say("an earlier call has submitted jobs; waiting for Slurm to tell about them.")
            time.sleep(min(5.0, backoff.failed()))
            self.backend.hurry()

    def _earlier_jobs_known(self) -> bool:
        """Resolve each entry of the journal: adopt it, take it as ended, or forget it."""
        self.tracker.look_around()
        known = [self._known(entry) for entry in list(self.earlier.values())]
        return all(known)

    def _known(self, entry: Entry) -> bool:
        if entry.cluster != self.backend.name:
            self.earlier.pop(entry.key)
            self.say(
                f"{entry.name}: an earlier call submitted it to cluster {entry.cluster} as {entry.job_id}; "
                "if it still runs there, end it before it is started here."
            )
            return True
        try:
            if entry.job_id is None and not self._find_by_token(entry):
                return True
        except (SlurmBusyError, SlurmRefusedError):
            return False
        if (verdict := self.tracker.judge(entry)) is not None:
            self._settle(entry, verdict)
            return True
        return self.backend.look(entry) is not None

    def _find_by_token(self, entry: Entry) -> bool:
        """The head died while it submitted: the job may be in the queue, marked with its token."""
        job_id = self.backend.find(entry.token).get(entry.index)
        if job_id is None:
            entry.state, entry.message = "CANCELLED", "the head process ended before the job was submitted"
            self.journal.write(entry)
            self.earlier.pop(entry.key)
            return False
        self._name_files(entry, job_id)
        self.journal.write(entry)
        return True

    def _settle(self, entry: Entry, verdict: Verdict) -> None:
        """An earlier job has ended while no head was alive."""
        if verdict.ok:
            if (entry.ended or 0.0) < self.head_started:  # Snakemake has seen its files and decides by itself
                self.earlier.pop(entry.key)
            return  # else Snakemake may have looked too early: if it asks for the job, that is done
        self.earlier.pop(entry.key)
        self.say(f"a job of an earlier call has failed meanwhile: {verdict.message}")

    def _adopt(self, job: JobExecutorInterface) -> bool:
        """Take over the job of an earlier head instead of submitting a second one."""
        entry = self.earlier.pop(key_of(job), None)
        if entry is None:
            return False
        if entry.fingerprint != fingerprint(job):
            self.say(
                f"{entry.name}: job {entry.job_id} was submitted with another command or other parameters; "
                f"it is adopted as it is. To start anew: {self.backend.cancel_command([entry])}"
            )
        if self.settings.cluster == "slurm":
            self._mend(job, entry)
        self.logger.info(f"submitit: adopted job {entry.job_id} ({entry.name}) of an earlier call.")
        self._report(job, entry)
        return True

    def _mend(self, job: JobExecutorInterface, entry: Entry) -> None:
        if not Path(entry.script).exists():
            Path(entry.script).parent.mkdir(parents=True, exist_ok=True)
            self.write_jobscript(job, entry.script)
        request = request_of(job, self._declared())
        self.backend.mend(entry.job_id or "", self._make_submitted(entry, request), request)

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
            if self._adopt(job):
                continue
            try:
                groups[request_of(job, self._declared()), job.name].append(job)
            except RequestError as error:
                self._refuse(job, str(error))
        for (request, name), members in groups.items():
            for start in range(0, len(members), self.backend.array_limit):
                self._submit(request, name, members[start : start + self.backend.array_limit])

    def additional_general_args(self) -> str:
        """What the inner Snakemake of a job is told: one job needs neither a rate limit nor a solver.

        Snakemake ends no earlier than the timer of its rate limit, which is a second after the job's start.
        """
        return "--max-jobs-per-timespan 1000/0s --scheduler greedy"

    def _submit(self, request: Request, name: str, jobs: Sequence[JobExecutorInterface]) -> None:
        token = uuid.uuid4().hex[:16]
        entries = [self._make_entry(job, request, token, place, len(jobs)) for place, job in enumerate(jobs)]
        for entry in entries:
            self.journal.write(entry)
        submitted = [self._make_submitted(entry, request) for entry in entries]
        try:
            job_ids = self.backend.submit(submitted, request, name, token)
        except SlurmRefusedError as error:
            for job, entry in zip(jobs, entries, strict=True):
                entry.state, entry.message = "FAILED", str(error)
                self.journal.write(entry)
                self._refuse(job, f"{entry.name} was not taken: {error}")
            return
        for job, entry, job_id in zip(jobs, entries, job_ids, strict=True):
            self._name_files(entry, job_id)
            entry.state = "PENDING"
            self.journal.write(entry)
            self._report(job, entry)
        self.logger.info(f"submitit: submitted {name}: {describe_ids(job_ids)}")

    def _make_entry(self, job: Any, request: Request, token: str, place: int, count: int) -> Entry:
        script = self.get_jobscript(job)
        self.write_jobscript(job, script)
        wildcards = {str(name): str(value) for name, value in wildcards_of(job).items()}
        return Entry(
            key=key_of(job),
            name=" ".join([job.name, *(f"{name}={value}" for name, value in wildcards.items())]),
            rule=job.name,
            wildcards=wildcards,
            outputs=sorted(str(path) for path in job.output),
            cluster=self.backend.name,
            token=token,
            index=place if count > 1 else None,
            script=script,
            record=str(self.backend.folder / f"{token}_{place}_record.json"),
            submitted=time.time(),
            fingerprint=fingerprint(job),
            gpus=request.gpu,
            resources={name: value for name, value in asdict(request).items() if value not in (None, (), 0)},
        )

    def _make_submitted(self, entry: Entry, request: Request) -> SnakemakeJob:
        return SnakemakeJob(
            Path(entry.script),
            Path.cwd(),
            Path(entry.record),
            cluster=self.backend.name,
            runtime_s=60.0 * self.backend.minutes(request),
            signal_s=float(self.settings.signal_seconds),
            max_timeouts=self.settings.max_timeouts,
            gpus=request.gpu,
            launcher=request.launcher,
            submitted=entry.submitted,
        )

    def _name_files(self, entry: Entry, job_id: str) -> None:
        paths = self.backend.paths(job_id)
        entry.job_id = job_id
        entry.submission = str(paths.submission_file) if self.backend.name == "slurm" else None
        entry.result = str(paths.result_pickle)
        if self.backend.name != "debug":
            entry.log, entry.error_log = str(paths.stdout), str(paths.stderr)

    def _report(self, job: JobExecutorInterface, entry: Entry) -> None:
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=entry.job_id, aux={"entry": entry}))

    def _refuse(self, job: JobExecutorInterface, message: str) -> None:
        self._failed = True
        self.report_job_error(SubmittedJobInfo(job), msg=message)

    # Following

    async def sleep(self) -> None:
        """A short tick: results are looked for often, Slurm is asked at its own interval."""
        await asyncio.sleep(TICK_S)

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that have ended and yield the others."""
        if not active_jobs or not self._looked_around():
            for info in active_jobs:
                yield info
            return
        for info in active_jobs:
            if not self._ended(info):
                yield info
        self.tracker.report_waiting()

    def _looked_around(self) -> bool:
        try:
            self.tracker.look_around()
        except Exception as error:
            self._note_error(error)
            return False
        self._errors = 0
        return True

    def _ended(self, info: SubmittedJobInfo) -> bool:
        entry: Entry = info.aux["entry"]
        try:
            verdict = self.tracker.judge(entry)
        except Exception as error:
            self._note_error(error)
            return False
        if verdict is None:
            return False
        if verdict.ok:
            self.report_job_success(info)
        else:
            self._failed = True
            self.report_job_error(info, msg=verdict.message, aux_logs=logs_of(entry))
        return True

    def _note_error(self, error: Exception) -> None:
        """An error of our own must not end the poller at once; but it must not repeat for ever either."""
        self._errors += 1
        self.say(f"could not follow the jobs ({type(error).__name__}: {error}); trying again.")
        if self._errors > MOST_ERRORS:
            raise error

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Show a failed job with everything a person needs."""
        if job_info.job.is_group():
            self.logger.error(msg)
        job_info.job.log_error(msg=msg, external_jobid=job_info.external_jobid, **kwargs)

    # Ending

    def cancel(self) -> None:
        """Ctrl-C: leave the jobs in the queue or cancel them, as the settings say."""
        with self.lock:
            active = list(self.active_jobs)
        if self.settings.on_interrupt == "cancel":
            self.cancel_jobs(active)
        elif active:
            self._failed = True
            entries = [info.aux["entry"] for info in active]
            self.say(f"{len(entries)} submitted jobs go on; the same command adopts them. "
                     f"To cancel them: {self.backend.cancel_command(entries)}")  # fmt: skip
        self.shutdown()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """End submitted jobs for good."""
        entries = [info.aux["entry"] for info in active_jobs]
        try:
            self.backend.cancel(entries)
        except (SlurmBusyError, SlurmRefusedError) as error:
            self.say(f"could not cancel ({error}); later: {self.backend.cancel_command(entries)}")
            return
        for entry in entries:
            entry.state, entry.message = "CANCELLED", "cancelled by Ctrl-C"
            self.journal.write(entry)

    def shutdown(self) -> None:
        """Stop the poller; scripts stay as long as a job may still need them."""
        with self.lock:
            self.wait = False
            left = bool(self.active_jobs)
        self.wait_thread.join()
        if self._scripts is not None and not left and not self._failed:
            shutil.rmtree(self._scripts, ignore_errors=True)
        head.forget_head(self.folder)

    @property
    def tmpdir(self) -> str:
        """Folder of this head's job scripts: jobs that outlive the head still find them."""
        if self._scripts is None:
            parent = self.folder / "scripts"
            parent.mkdir(parents=True, exist_ok=True)
            self._scripts = Path(tempfile.mkdtemp(dir=parent, prefix=time.strftime("%Y%m%d-%H%M%S-")))
        return str(self._scripts)


def key_of(job: Any) -> str:
    """The journal's name of one of Snakemake's jobs."""
    return make_key([str(path) for path in job.output], job.name, wildcards_of(job))


def wildcards_of(job: Any) -> dict[str, str]:
    """A job's wildcards; a group has none of its own."""
    return {} if job.is_group() else {str(name): str(value) for name, value in job.wildcards_dict.items()}


def fingerprint(job: Any) -> str:
    """Changes when the command or the parameters of a job change."""
    if job.is_group():
        return ""
    text = f"{getattr(job, 'shellcmd', '') or ''}\n{[str(value) for value in job.params]}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def describe_ids(job_ids: Sequence[str]) -> str:
    """One job or one array, in Slurm's notation."""
    if len(job_ids) == 1:
        return f"job {job_ids[0]}"
    if "_" in job_ids[0]:
        return f"array {job_ids[0].split('_')[0]}_[0-{len(job_ids) - 1}]"
    return f"jobs {', '.join(job_ids)}"


def logs_of(entry: Entry) -> list[str]:
    """The logs of a job that exist."""
    return [path for path in (entry.error_log, entry.log) if path and Path(path).exists()]

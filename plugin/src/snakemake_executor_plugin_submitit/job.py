"""What runs on the node: the job's own Snakemake, guarded so that its program can save and continue.

The contract with the rule's program: it handles SIGUSR2 (the time limit or a preemption is near) and SIGTERM,
saves its state and ends with an exit code that is not 0; a rerun of the same command continues. Programs that
know nothing of this work too: they just run on until they are done or Slurm kills them.

- SIGUSR2 is ignored by everything between this process and the program; the program installs its own handler.
- At SIGUSR2 submitit calls `checkpoint`: it waits until the program has ended, then submitit requeues the
  job.
- After SIGTERM (`scontrol requeue`, preemption without warning, `scancel`) no result is written, because
  Slurm may run the job again: this process waits to be killed, and the controller asks Slurm what became of
  the job.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import gpu_slots

from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.requests import IGNORE_SIGNALS
from snakemake_executor_plugin_submitit.turns import STARTED, Turn

__all__ = ["RuleError", "SnakemakeJob", "TooManyTimeoutsError"]

POLL_S = 0.2
HEARTBEAT_S = 30.0
# Short jobs would end between two samples of the usual interval, so the first ones come quickly.
FIRST_SAMPLES_S = 2.0
SIGNAL_GRACE_S = 2.0
# Slurm's kill comes KillWait seconds after SIGTERM, and sites set that as they like: far longer than any.
WAIT_FOR_KILL_S = 900.0
LONGEST_REQUEUE_S = 60.0
NO_OUTPUT = 74
"""Exit code of a job whose outputs did not appear (EX_IOERR of sysexits.h)."""
MEMORY_PARTS = 64


# The tracker knows these errors by name: a result file keeps the traceback as text and nothing else.
class RuleError(RuntimeError):
    """The rule's command ended with an error."""


class TooManyTimeoutsError(RuntimeError):
    """The job met its time limit more often than allowed."""


class _EndedWellError(Exception):
    """The rule's command ended well although a signal had asked it to stop."""


class SnakemakeJob:
    """A submitted job: the inner Snakemake's script, and what is needed to interrupt and continue it."""

    def __init__(
        self,
        script: Path,
        workdir: Path,
        record: Path,
        *,
        cluster: str,
        runtime_s: float,
        signal_s: float,
        max_timeouts: int,
        gpus: int,
        cpus: int = 1,
        memory_mb: int = 0,
        launcher: str,
        submitted: float,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        latency_s: float = 5.0,
        title: str = "",
    ) -> None:
        self.script = script
        self.workdir = workdir
        self.record_path = record
        self.cluster = cluster
        self.runtime_s = runtime_s
        self.signal_s = signal_s
        self.max_timeouts = max_timeouts
        self.gpus, self.cpus, self.memory_mb = gpus, cpus, memory_mb
        self.launcher = launcher
        self.submitted = submitted
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.latency_s = latency_s
        self.title = title
        # submitit pickles this object, so what belongs to one start is set apart from the settings.
        self._forget_process()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings, not the running process."""
        # A requeued job starts from this pickle on another node, where neither the
        # child nor its locks exist.
        running = (
            "_child",
            "_record",
            "_terminated",
            "_started",
            "_sampled",
            "_too_often",
            "_requeued",
            "_slots",
            "_waiting",
            "_turn",
        )
        return {name: value for name, value in self.__dict__.items() if name not in running}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Jobs that an older version has submitted may start, or be requeued, after an upgrade.
        before_version_0_2 = {
            "inputs": [],
            "outputs": [],
            "latency_s": 5.0,
            "cpus": 1,
            "memory_mb": 0,
            "title": "",
        }
        self.__dict__.update({**before_version_0_2, **state})
        self._forget_process()

    def _forget_process(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._slots: list[gpu_slots.Lease] = []
        self._waiting = False
        self._turn: Turn | None = None
        self._record = JobRecord(submitted=self.submitted)
        self._terminated = False
        self._too_often = False
        self._requeued = False
        self._started = time.time()
        self._sampled = 0.0

    def __call__(self) -> dict[str, Any]:
        """Run the inner Snakemake to its end; called by submitit on the node."""
        # First of all: a result of an earlier start would be taken for this one's as
        # soon as it is looked for.
        self._remove_leftovers()
        done = JobRecord.load(self.record_path)
        if done is not None and done.exit_code == 0:  # requeued after its end: a second run would undo it
            return {"exit_code": 0}
        self._begin(done)
        # SIGTERM may come at any moment from here on, and what it means is known
        # only after the program's end.
        try:
            with self._sigterm_noted():
                exit_code = self._run()
        except _EndedWellError:
            exit_code = 0
        except subprocess.SubprocessError:  # submitit's `scontrol requeue`
            self._requeue_again()
        # A handler may have decided on the end already, and its exception may have
        # been lost on the way here.
        if exit_code != 0:
            self._raise_what_was_lost()
        # A time limit that strikes now would requeue a job that has nothing left to do.
        ignore_save_signal()
        # Slurm may run the job again after a SIGTERM: a result written now would count as its end.
        if self._terminated:
            self._wait_to_be_killed()
        return self._finish(exit_code)

    def _begin(self, record: JobRecord | None) -> None:
        # The record of earlier starts goes on: a restart from the original pickle knows nothing of them.
        self._record = record or JobRecord(submitted=self.submitted)
        self._started = time.time()
        self._record.start(os.environ.get("SLURMD_NODENAME") or socket.gethostname(), job_id())
        # Saved before anything runs: the controller finds a job's id here if it died while submitting.
        self._record.save(self.record_path)

    def _show_title(self) -> None:
        """Let squeue show this job's own name, not its array's; a Slurm that refuses costs only that."""
        with suppress(OSError, subprocess.SubprocessError):
            command = ["scontrol", "update", f"JobId={job_id()}", f"JobName={self.title}"]
            subprocess.run(command, capture_output=True, timeout=20, check=False)

    def _raise_what_was_lost(self) -> None:
        """An `except Exception` that a signal interrupts, as in logging, swallows what its handler raises."""
        if self._too_often:
            raise TooManyTimeoutsError(f"the time limit was met {self._record.timeouts} times")
        if self._requeued:
            self._requeue_again()

    def _requeue_again(self) -> NoReturn:
        """Slurm refuses to requeue a job that it requeues itself, or when it is busy: go on until killed."""
        ignore_save_signal()
        # The pauses grow, because a controller of Slurm that is busy is not helped by many requests.
        pause = 2.0
        while True:
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_REQUEUE_S)
            with suppress(OSError, subprocess.SubprocessError):
                command = ["scontrol", "requeue", job_id()]
                subprocess.run(command, capture_output=True, timeout=60, check=False)

    def _remove_leftovers(self) -> None:
        """Remove what an earlier start of this job has left: its result, and files half written."""
        # Local jobs bear process numbers, which are used again: the old result may be that of another job.
        if (folder := os.environ.get("SUBMITIT_FOLDER")) and self.cluster != "debug":
            for name in ("0_result.pkl", "0_result.pkl.save_tmp", "submitted.pkl.save_tmp"):
                (Path(folder) / f"{job_id()}_{name}").unlink(missing_ok=True)

    def _finish(self, exit_code: int) -> dict[str, Any]:
        # Short programs end before the first sample; the kernel has counted them all the same.
        self._record.peak_memory_mb = max(self._record.peak_memory_mb, largest_child_mb())
        if exit_code == 0 and (missing := self._missing_outputs()):
            # a Snakemake on a node with an old view of the folder may find nothing to do
            unseen = [f"input {path}" for path in self._not_there(self.inputs)]
            self._record.missing = [*(f"output {path}" for path in missing), *unseen]
            exit_code = NO_OUTPUT
        # The record is on disk before the result: if the result gets lost, the
        # record still shows the success.
        self._record.end(exit_code)
        self._record.save(self.record_path)
        if exit_code != 0:
            raise RuleError(f"the job's command ended with exit code {exit_code}")
        return {"exit_code": exit_code}

    def _missing_outputs(self) -> list[str]:
        """Declared outputs that are not there, also after a while."""
        # On a shared file system an output may become visible only some time after it was written.
        deadline = time.monotonic() + self.latency_s
        while (missing := self._not_there(self.outputs)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return missing

    def _not_there(self, paths: Sequence[str]) -> list[str]:
        return [path for path in paths if not (self.workdir / path).exists()]

    def _run(self) -> int:
        # Slurm hands out GPUs, cores and memory itself; on a machine without it the jobs share by locks.
        if self.cluster == "local":
            self._take_slots()
        elif self.cluster == "slurm":
            self._turn = Turn(self.record_path.parents[1] / "turns", job_id())
        # SIGTERM came while the job waited for its turn: a program started now would only be killed.
        if self._terminated:
            self._release_slots()
            return 143
        self._child = self._start()
        self._sampled = time.time()  # its own Snakemake starts up first
        # After the start: a Slurm that answers late must not keep the program waiting.
        if self.title:
            self._show_title()
        exit_code = self._watch()
        # Held no longer than needed: what follows may wait for late files, and other jobs want the GPUs.
        self._release_slots()
        if exit_code != 0:  # the signal that ended the program may be a moment later here
            deadline = time.monotonic() + SIGNAL_GRACE_S
            while not self._terminated and time.monotonic() < deadline:
                time.sleep(POLL_S)
        return exit_code

    def _take_slots(self) -> None:
        """Wait for this job's part of the machine: GPUs of its own, cores and memory that no other job has.

        A time limit that ends the wait is not counted: nothing has run yet.
        """
        import psutil  # type: ignore[import-untyped, unused-ignore]

        # Only the chosen GPUs are looked at: submitit overwrites the
        # CUDA_VISIBLE_DEVICES of the user's shell.
        environment = {gpu_slots.CHOSEN: os.environ.get(gpu_slots.CHOSEN, "")}
        memory = psutil.virtual_memory().total / 1e6
        cores = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        # The order GPUs, cores, memory is the same in every job: else two could wait
        # for each other for ever.
        self._waiting = True
        self._slots = [
            gpu_slots.take(self.gpus, environment, waiting=self._say),
            gpu_slots.take_share("cores", self.cpus, cores, cores, self._say),
            gpu_slots.take_share("memory", self.memory_mb, memory, MEMORY_PARTS, self._say),
        ]
        self._waiting = False

    def _release_slots(self) -> None:
        """Give this process's share and turn back; processes of the program that still run keep theirs."""
        if self._turn is not None:
            self._turn.end()
        for lease in self._slots:
            lease.release()
        self._slots = []

    def _say(self, line: str) -> None:
        print(f"submitit: {line}", flush=True)

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the script; SIGUSR2 and SIGTERM are ignored until a program in it installs its handlers."""
        with self.script.open("rb") as script:
            plain = script.readline() == b"#!/bin/sh\n"  # need not be executable on this node
        # A shell that ignores the signals comes first: ignored signals are inherited, handlers are not.
        command = ["/bin/sh", str(self.script)] if plain else [str(self.script)]
        return subprocess.Popen(
            ["/bin/sh", str(IGNORE_SIGNALS), *command],
            cwd=self.workdir,
            env=self._environment(),
            pass_fds=[lock for lease in self._slots for lock in lease.locks],
        )

    def _watch(self) -> int:
        """Wait for the command by polling: a signal handler may interrupt this and wait for it too."""
        assert self._child is not None
        while (exit_code := ended(self._child)) is None:
            self._sample()
            if self._turn is not None:
                self._turn.end_if_started()
            wait_for_end(self._child.pid, POLL_S)
        return exit_code

    def _environment(self) -> dict[str, str]:
        """What the rule's program may know of its job; metrics are accounted from these."""
        environment = dict(os.environ)
        environment.pop("SNAKEMAKE_PROFILE", None)  # with it the job's own Snakemake would submit jobs
        # Every bash between Snakemake and the program must survive the signals; the
        # user's own file is read after.
        if user_file := environment.get("BASH_ENV"):
            environment["SNAKEMAKE_SUBMITIT_USER_BASH_ENV"] = user_file
        environment["BASH_ENV"] = str(Path(__file__).with_name("shell_init.sh"))
        environment["SNAKEMAKE_SUBMITIT_JOB_ID"] = job_id()
        environment["SNAKEMAKE_SUBMITIT_RESTARTS"] = str(self._record.restarts)
        environment["SNAKEMAKE_SUBMITIT_QUEUE_WAIT_S"] = f"{self._record.queue_wait_s:.1f}"
        environment["SNAKEMAKE_SUBMITIT_GPUS"] = str(self.gpus)
        environment["SNAKEMAKE_SUBMITIT_LAUNCHER"] = self.launcher
        if self._turn is not None:
            environment[STARTED] = str(self._turn.started)
        # The rule's program may hold the slots too, so that they stay taken if only this process is killed.
        for lease in self._slots:
            environment.update(lease.environment)
        if files := [str(path) for lease in self._slots for path in lease.files]:
            environment[gpu_slots.HELD] = ":".join(files)
        return environment

    @contextmanager
    def _sigterm_noted(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # cluster debug runs in the poller
            yield
            return
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm's wakes stopped jobs; submitit would log it
        # submitit's own handler ignores SIGTERM; here it decides whether a result may be written.
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            if not self._terminated:
                signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, *_: object) -> None:
        # The signal may come more than once, and is one interruption all the same.
        if not self._terminated:
            self._terminated = True
            self._record.interrupt("SIGTERM")
            self._record.seen()
            self._record.save(self.record_path)
        self._forward(signal.SIGTERM)

    def _forward(self, number: signal.Signals) -> None:
        """Pass a signal on where nobody else does (Slurm itself signals every process of the step)."""
        if self.cluster != "slurm" and self._child is not None:
            for process in family(self._child.pid):
                try:
                    process.send_signal(number)
                except Exception:  # it has just ended
                    continue

    def _wait_to_be_killed(self) -> None:
        """Write no result: Slurm may start the job again, and the controller asks Slurm."""
        print("submitit: ended after SIGTERM; what becomes of the job is up to Slurm", flush=True)
        # Without Slurm nobody starts the job again, so there is no kill to wait for.
        if self.cluster == "slurm":
            time.sleep(WAIT_FOR_KILL_S)
        sys.exit(143)

    def checkpoint(self) -> Any:
        """Wait until the program has saved its state and ended; called by submitit at SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        # Noted before the wait: the kill may come before the program has saved.
        cause = self._cause()
        self._record.interrupt(cause)
        self._record.save(self.record_path)
        self._forward(signal.SIGUSR2)
        # submitit requeues when this returns: the new start must not meet a program
        # that still writes its state.
        exit_code = None if self._child is None else self._watch()
        # It was done at the last moment: a requeue would run a finished job again.
        if exit_code == 0:
            raise _EndedWellError
        self._record.seen()
        self._record.save(self.record_path)
        # Preemptions do not count: a job in a busy partition would reach the limit
        # through no fault of its own.
        if cause == "time limit" and self._record.timeouts > self.max_timeouts:
            self._record.end(75)
            self._record.save(self.record_path)
            self._too_often = True
            self._raise_what_was_lost()
        # Remembered, because an `except Exception` that the signal interrupts may swallow a failed requeue.
        self._requeued = True
        print(f"submitit: interrupted by {cause}; the job is queued again and will continue", flush=True)
        return DelayedSubmission(self)

    def _cause(self) -> str:
        """Distinguish a time limit from a preemption: Slurm knows; without Slurm the clock does."""
        if self.cluster == "slurm" and preempted(job_id()):
            return "preemption"
        if self._waiting:
            return "no free slot"  # nothing has run yet, so no time limit was met
        # Slurm sends the signal up to a minute early (measured 25-60 s), so the
        # clock must leave room for that.
        almost_over = self.runtime_s - self.signal_s - 90.0
        if time.time() - self._started >= almost_over:
            return "time limit"
        return "preemption"

    def _sample(self) -> None:
        """Note memory and life sign: often in the first minute, then every half minute."""
        now = time.time()
        age = now - self._started
        if now - self._sampled < min(HEARTBEAT_S, max(FIRST_SAMPLES_S, age / 10)):
            return
        self._sampled = now
        assert self._child is not None
        # A record is written only for something new: a shared file system carries
        # those of thousands of jobs.
        memory = memory_mb(self._child.pid)
        grown = memory > 1.05 * self._record.peak_memory_mb
        self._record.peak_memory_mb = max(memory, self._record.peak_memory_mb)
        if grown or now - (self._record.last_seen or 0.0) > HEARTBEAT_S - 1:
            self._record.seen()
            self._record.save(self.record_path)


def job_id() -> str:
    """The job's id as Slurm prints it: 12, or 12_3 for a task of an array."""
    environment = os.environ
    if environment.get("SUBMITIT_EXECUTOR") == "local":  # perhaps inside of another job of Slurm
        return environment["SUBMITIT_LOCAL_JOB_ID"]
    # SLURM_JOB_ID of an array's task is another number, which squeue and submitit's files do not show.
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return (
        environment.get("SUBMITIT_LOCAL_JOB_ID") or environment.get("SLURM_JOB_ID") or f"debug-{os.getpid()}"
    )


def ignore_save_signal() -> None:
    """The command has ended: submitit's handler must not ask it to save any more."""
    # Python sets handlers in the main thread only, and cluster debug runs jobs in the poller's.
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGUSR2)):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def preempted(identifier: str) -> bool:
    """Ask Slurm whether a job is being preempted; no answer counts as no."""
    command = ["scontrol", "--oneliner", "show", "job", identifier]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    # Slurm sends the same SIGUSR2 for both, and only the job's PreemptTime differs.
    fields = dict(word.split("=", 1) for word in answer.split() if "=" in word)
    return fields.get("PreemptTime", "None") not in ("None", "Unknown", "")


def ended(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a child, as a shell counts it; None while it runs.

    Signals are held back meanwhile: a handler that asks as well must find either a child or its exit code.
    Popen.poll would leave its lock taken in the interrupted frame.
    """
    # Both signals have handlers that wait for the child; each other one may interrupt at any time.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        if child.returncode is None and (status := os.waitpid(child.pid, os.WNOHANG)) != (0, 0):
            code = os.waitstatus_to_exitcode(status[1])
            child.returncode = code if code >= 0 else 128 - code
        return child.returncode
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_end(pid: int, longest_s: float) -> None:
    """Wait until a child has ended, or for a while; at once if the kernel reports it (Linux >= 5.3)."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        time.sleep(longest_s)
        return
    try:
        select.select([handle], [], [], longest_s)
    finally:
        os.close(handle)


def family(pid: int) -> list[Any]:
    """A process and all its descendants."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def largest_child_mb() -> float:
    """Peak memory (MB) of the largest process below this one that has ended, as the kernel counted it."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def memory_mb(pid: int) -> float:
    """Memory of a process and all its descendants, in MB."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_info().rss
        except Exception:  # it has just ended
            continue
    return total / 1e6

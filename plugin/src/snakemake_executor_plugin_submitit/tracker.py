"""What becomes of submitted jobs: results first, then what the cluster says, and never a hasty verdict."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_submitit.backends import Backend, Look, Result
from snakemake_executor_plugin_submitit.journal import Journal, JournalEntry
from snakemake_executor_plugin_submitit.messages import (
    as_list,
    explain_failure,
    explain_reason,
    ordinary_reason,
    out_of_memory,
)
from snakemake_executor_plugin_submitit.record import JobRecord

__all__ = ["Tracker", "Verdict"]

GRACE_S = {"NODE_FAIL": 60.0, "BOOT_FAIL": 60.0, "PREEMPTED": 60.0, "COMPLETED": 60.0}
"""How long a job that looks ended may still be requeued, or its result be on its way."""
USUAL_GRACE_S = 4.0
LOCAL_GRACE_S = 1.0
ERROR_GRACE_S = 30.0
"""How long Slurm may take to report the end of a job that has left an error."""
HURRY_S = 2.0
WAITING_STATES = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)


@dataclass(frozen=True)
class Verdict:
    """How a job has ended."""

    ok: bool
    state: str
    message: str = ""


class Tracker:
    """Follows jobs through starts, interruptions and requeues until they have ended."""

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        latency_wait: float = 0.0,
    ) -> None:
        self.backend = backend
        self.journal = journal
        self.say = say
        self.clock = clock
        self.latency_wait = latency_wait
        self._present: set[str] = set()
        self._answers = -1
        self._new_jobs = False
        self.quiet = False
        self._ended_since: dict[str, tuple[str, float]] = {}
        self._error_since: dict[str, float] = {}
        self._hurried = -HURRY_S
        self._waiting: dict[str, list[JournalEntry]] = defaultdict(list)
        self._reported: set[tuple[str, str]] = set()

    def look_around(self) -> None:
        """Learn which results are there, and the state of the queue if it is time to ask.

        Nothing new at all makes it `quiet`: no verdict on any job can differ from the last one.
        """
        self._present = self.backend.results_present()
        self.backend.refresh()
        pending = self._present or self._ended_since or self._error_since
        self.quiet = self.backend.answers == self._answers and not pending and not self._new_jobs
        self._answers, self._new_jobs = self.backend.answers, False

    def expect(self) -> None:
        """Jobs have been added since the last look."""
        self._new_jobs = True

    def judge(self, entry: JournalEntry) -> Verdict | None:
        """How the job has ended; None if it has not, or nobody knows yet."""
        # The job's own result is the best evidence: Slurm forgets jobs, and may know the end later.
        if entry.state == "COMPLETED":  # seen before: its result is no longer there
            return Verdict(True, "COMPLETED")
        name = os.path.basename(entry.result or "")  # Path is slow
        if name in self._present and (result := self.backend.result(entry)) is not None:
            return self._judge_result(entry, result)

        # Else the cluster's word; silence is none, and an end may still turn into another start.
        look = self.backend.look(entry)
        if look is None:
            return None
        if not look.ended:
            self._follow(entry, look)
            return None
        # The job may have ended between the look into the folder and the queue's answer.
        if (result := self.backend.result(entry)) is not None:
            return self._judge_result(entry, result)
        if not self._surely_ended(entry, look):
            return None
        return self._fail(entry, look.state, look.by_whom)

    def in_doubt(self, entry: JournalEntry) -> bool:
        """Whether a job has left an error or looks ended, and its verdict is still to come."""
        return entry.key in self._error_since or entry.key in self._ended_since

    def _surely_ended(self, entry: JournalEntry, look: Look) -> bool:
        # Slurm may show an end for a moment before it queues the job again (NODE_FAIL, PREEMPTED).
        state, since = self._ended_since.setdefault(entry.key, (look.state, self.clock()))
        if state != look.state:
            self._ended_since[entry.key] = (look.state, self.clock())
            return False
        return self.clock() - since >= self._grace(look.state)

    def _grace(self, state: str) -> float:
        # Without Slurm nobody queues a job again, so there is only the file system to wait for.
        if self.backend.name != "slurm":
            return LOCAL_GRACE_S
        return GRACE_S.get(state, USUAL_GRACE_S) + (self.latency_wait if state == "COMPLETED" else 0.0)

    def _judge_result(self, entry: JournalEntry, result: Result) -> Verdict | None:
        if result.error is None:
            return self._succeed(entry)
        # An error need not be the end: Slurm may start the job again, or know that memory was the reason.
        look = self.backend.look(entry)
        if self.backend.name == "slurm" and not self._error_is_final(entry, look):
            return None
        # For Slurm this job has just failed; that it was the time limit only the job knows.
        if "TooManyTimeoutsError" in result.error:
            return self._fail(entry, "TIMEOUT")
        known = look is not None and look.state == "OUT_OF_MEMORY"
        return self._fail(entry, "OUT_OF_MEMORY" if known else "FAILED")

    def _error_is_final(self, entry: JournalEntry, look: Look | None) -> bool:
        """Slurm may have the better word for the end, or start the job again: give it some time."""
        if look is not None and look.state in WAITING_STATES:  # of an earlier start
            self._follow(entry, look)
            return False
        if look is not None and look.ended:
            return look.state not in GRACE_S or self._surely_ended(entry, look)
        # Slurm has not reported the end yet, and the next answer may be a whole interval away: it is asked
        # before its time, but not at every tick.
        if self.clock() - self._hurried >= HURRY_S:
            self._hurried = self.clock()
            self.backend.hurry()
        return self.clock() - self._error_since.setdefault(entry.key, self.clock()) >= ERROR_GRACE_S

    def _succeed(self, entry: JournalEntry) -> Verdict:
        self._absorb(entry)
        self._forget_times(entry)
        entry.state, entry.reason = "COMPLETED", None
        entry.ended = entry.ended or time.time()
        self.journal.write(entry)
        # After the journal is written: a controller that dies in between still knows how the job has ended.
        self.backend.forget(entry)
        return Verdict(True, "COMPLETED")

    def _fail(self, entry: JournalEntry, state: str, by_whom: str = "") -> Verdict:
        record = self._absorb(entry)
        if record is not None and record.exit_code == 0:  # the job says so itself: only its result got lost
            return self._succeed(entry)
        self._forget_times(entry)
        message = explain_failure(entry, state, record, by_whom)
        # COMPLETED in the journal means that the outputs are there; Slurm only means
        # that the process has ended.
        ended_as = "FAILED" if state == "COMPLETED" else state
        entry.state = "OUT_OF_MEMORY" if out_of_memory(entry, state) else ended_as
        entry.reason, entry.message = None, message
        entry.ended = entry.ended or time.time()
        self.journal.write(entry)
        # A retry under the same number would meet the old error.
        self.backend.drop_result(entry)
        return Verdict(False, entry.state, message)

    def _forget_times(self, entry: JournalEntry) -> None:
        """It goes on, or a retry of the same job begins anew."""
        self._ended_since.pop(entry.key, None)
        self._error_since.pop(entry.key, None)

    def _absorb(self, entry: JournalEntry) -> JobRecord | None:
        record = JobRecord.load(Path(entry.record))
        if record is not None:
            entry.absorb(record)
        return record

    def _follow(self, entry: JournalEntry, look: Look) -> None:
        """Note changes of a job that goes on; say when it was requeued or cannot start."""
        self._forget_times(entry)
        state = "PENDING" if look.state in WAITING_STATES else "RUNNING"
        reason = None
        if state == "PENDING" and not ordinary_reason(look.reason):
            reason = look.reason
        # The journal is written only for a change: a write for each job at each look would burden the disk.
        if (state, reason) == (entry.state, entry.reason):
            return
        # Slurm says nothing of a requeue; a job that ran and waits again was requeued.
        requeued = entry.state == "RUNNING" and state == "PENDING"
        entry.state, entry.reason, entry.node = state, reason, look.node or entry.node
        record = self._absorb(entry) if requeued or state == "RUNNING" else None
        self.journal.write(entry)
        if requeued:
            self.say(
                f"{entry.name}: job {entry.job_id} was requeued ({requeue_cause(record)}); it will continue."
            )
        # Collected, because thousands of tasks of an array may wait for the same reason.
        if reason is not None and (entry.key, reason) not in self._reported:
            self._reported.add((entry.key, reason))
            self._waiting[reason].append(entry)

    def report_waiting(self) -> None:
        """Say once per job and reason why jobs cannot start, many jobs in one line."""
        for reason, entries in self._waiting.items():
            jobs = as_list([f"{entry.name} ({entry.job_id})" for entry in entries])
            self.say(f"cannot start: {jobs}: {explain_reason(reason)}")
        self._waiting.clear()


def requeue_cause(record: JobRecord | None) -> str:
    """Why a job was requeued, as far as the job itself knew."""
    unnoticed = "node failure, or preemption or scontrol requeue without warning"
    if record is None or not record.interruptions:
        return unnoticed
    # An interruption before the last start belongs to an earlier requeue, not to this one.
    last = record.interruptions[-1]
    if record.starts and last["time"] < record.starts[-1]["time"]:
        return unnoticed
    if last["cause"] == "SIGTERM":
        return "preemption or scontrol requeue"
    return str(last["cause"])

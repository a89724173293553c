"""The state of all jobs by one squeue per interval, whatever their number, patient when Slurm is silent."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from snakemake_executor_plugin_submitit.slurm import Backoff, SlurmBusyError, SlurmRefusedError, ask

__all__ = ["ENDED_STATES", "Accounting", "End", "QueueLine", "Queue", "read_lines", "squeue_command"]

SACCT_S, SACCT_JOBS, SACCT_TIMES = 1.5, 500, 10
"""sacct is asked no more often (and ever more slowly), for no more jobs at a time, no more times for one."""
# The reason comes last, because it is free text and may hold the separator.
FORMAT = "%i|%T|%N|%j|%k|%r"
ENDED_STATES = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "CANCELLED",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
    }
)
"""States after which a job does not run again (NODE_FAIL and PREEMPTED only if Slurm does not requeue it)."""


@dataclass(frozen=True)
class QueueLine:
    """One job as squeue shows it."""

    job_id: str
    state: str
    reason: str
    node: str = ""
    name: str = ""
    comment: str = ""

    @property
    def ended(self) -> bool:
        """Whether Slurm says that the job is over."""
        return self.state in ENDED_STATES


class Queue:
    """What squeue said last, asked again when the interval is over."""

    def __init__(
        self, interval: float, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval = interval
        self.say = say
        self.clock = clock
        self.backoff = Backoff(first=max(2.0, interval), longest=max(60.0, interval))
        self.lines: dict[str, QueueLine] = {}
        self.answers = 0
        self._next = 0.0

    def refresh(self) -> bool:
        """Ask squeue if it is time to; True if it has answered just now."""
        if self.clock() < self._next:
            return False
        # A silent Slurm is no news about any job: what it has said last stays true until it answers.
        try:
            answer = ask(squeue_command())
        except (SlurmBusyError, SlurmRefusedError) as error:
            if self.backoff.failures == 0:
                self.say(f"Slurm does not answer ({error}). The jobs go on; asking again until it does.")
            self._next = self.clock() + self.backoff.failed()
            return False
        if self.backoff.answered():
            self.say("Slurm answers again.")
        self.lines = {line.job_id: line for line in read_lines(answer)}
        self.answers += 1
        self._next = self.clock() + self.interval
        return True

    def marked(self, comment: str) -> dict[int | None, str]:
        """Ids of the jobs that were submitted with a comment, by their index in the array."""
        job_ids: dict[int | None, str] = {}
        for line in self.lines.values():
            if line.comment == comment:
                _, _, index = line.job_id.partition("_")
                job_ids[int(index) if index else None] = line.job_id
        return job_ids

    @property
    def waiting_or_running(self) -> int:
        """How many jobs of this user are in the queue."""
        return sum(not line.ended for line in self.lines.values())

    def hurry(self) -> None:
        """Ask again at the next occasion, unless Slurm is silent."""
        if self.backoff.failures == 0:
            self._next = 0.0


def squeue_command() -> list[str]:
    """All jobs of this user, array tasks one by one, those that ended a short while ago included."""
    return [
        "squeue",
        "--noheader",
        "--array",
        "--all",
        "--states=all",
        f"--user={os.getuid()}",
        f"--format={FORMAT}",
    ]


def read_lines(answer: str) -> Iterator[QueueLine]:
    """Read squeue's lines; an array that Slurm still prints as a range counts for all its tasks.

    Banners that a site prints before them are skipped.
    """
    for text in answer.splitlines():
        fields = [field.strip() for field in text.split("|", 5)]
        if len(fields) < 6 or not re.match(r"\d+(_|$)", fields[0]):
            continue
        identifiers, state, node, name, comment, reason = fields
        for job_id in expand(identifiers):
            yield QueueLine(job_id, state, reason, node, name, comment)


def expand(identifiers: str) -> Iterable[str]:
    """12, 12_3 or 12_[0-2,5%4] as single ids."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", identifiers)
    if match is None:
        return [identifiers]
    job_ids = []
    for part in match[2].split(","):
        low, _, high = part.partition("-")
        job_ids += [f"{match[1]}_{number}" for number in range(int(low), int(high or low) + 1)]
    return job_ids


@dataclass(frozen=True)
class End:
    """How a job has ended: Slurm's word, the user who cancelled it, and the job's name."""

    state: str = ""
    by_whom: str = ""
    name: str = ""


class Accounting:
    """How jobs have ended, from sacct: one question for all of them, and only final answers are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.answers = 0
        self._wanted: dict[str, int] = {}
        self._ends: dict[str, End] = {}
        self._next = 0.0

    def want(self, job_ids: Iterable[str]) -> None:
        """Ask for jobs at the next refresh; nobody is asked for without end."""
        for job_id in job_ids:
            if job_id not in self._ends:
                self._wanted.setdefault(job_id, 0)

    def end_of(self, job_id: str) -> End:
        """How a job has ended; all empty as long as sacct does not know."""
        return self._ends.get(job_id, End())

    def refresh(self) -> None:
        """Ask for what is wanted, a few hundred jobs at a time, unless it was just asked."""
        # Jobs that sacct does not know after many questions are given up, or they
        # would be asked about for ever.
        asked = [job_id for job_id, times in self._wanted.items() if times < SACCT_TIMES][:SACCT_JOBS]
        if not asked or self.clock() < self._next:
            return
        # The database may lag behind: the pauses grow with the number of questions that had no answer.
        self._next = self.clock() + SACCT_S * (1 + max(self._wanted[job_id] for job_id in asked))
        try:
            self._ends.update(ended_states(asked))
            self.answers += 1
        except (SlurmBusyError, SlurmRefusedError):
            return
        # Only an answer counts: a sacct that failed has not said that it does not know the job.
        for job_id in asked:
            if job_id in self._ends:
                del self._wanted[job_id]
            else:
                self._wanted[job_id] += 1


def ended_states(job_ids: Iterable[str]) -> dict[str, End]:
    """The ends of those jobs that the accounting knows to have ended."""
    # --allocations leaves out the steps of a job, which have states of their own.
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,JobName"]
    ends = {}
    for text in ask([*command, f"--jobs={','.join(job_ids)}"]).splitlines():
        fields = text.split("|", 2)
        if len(fields) < 3:  # a banner
            continue
        job_id, words, name = fields
        # sacct writes "CANCELLED by 1000": the state and who has ended the job.
        state, _, rest = words.partition(" ")
        if state.rstrip("+") in ENDED_STATES:
            ends[job_id] = End(state.rstrip("+"), rest.removeprefix("by ").strip(), name)
    return ends

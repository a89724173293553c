"""Jobs of an earlier controller: which of them go on, which are done, and which must be submitted again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from snakemake_executor_plugin_submitit.backends import Backend
from snakemake_executor_plugin_submitit.journal import Journal, JournalEntry
from snakemake_executor_plugin_submitit.messages import as_list
from snakemake_executor_plugin_submitit.record import JobRecord
from snakemake_executor_plugin_submitit.slurm import Backoff, SlurmBusyError, SlurmRefusedError
from snakemake_executor_plugin_submitit.tracker import Tracker

__all__ = ["EarlierJobs"]

YOUNG_S = 30.0
"""How long after its entry a job may still appear: sbatch, or a process, outlives the controller."""


class EarlierJobs:
    """Entries that the journal holds for active when a controller starts.

    An entry stays until Snakemake has taken note of its end. Those that have ended well meanwhile stay too:
    Snakemake has looked at the files a moment earlier and may still ask for them.
    """

    def __init__(
        self, backend: Backend, tracker: Tracker, journal: Journal, say: Callable[[str], None]
    ) -> None:
        self.backend = backend
        self.tracker = tracker
        self.journal = journal
        self.say = say
        # A file that cannot be read does not say whether its job runs: it is looked
        # for before a submission.
        self.damaged = journal.damaged()
        self.entries: dict[str, JournalEntry] = {}
        self._making: dict[str, str] = {}
        self._since: dict[str, float] = {}
        # Ended jobs are Snakemake's matter: their outputs are there, or they are to be made anew.
        for entry in journal.entries():
            if entry.active:
                self.add(entry)

    def add(self, entry: JournalEntry) -> None:
        """Follow a job that this controller has not submitted."""
        self.damaged.discard(entry.key)
        self.entries[entry.key] = entry
        # By output as well: a call that groups its jobs in another way asks under other keys.
        self._making.update(dict.fromkeys(entry.outputs, entry.key))
        self._since[entry.key] = time.monotonic()

    def find_out(self) -> None:
        """Learn what has become of each, waiting until the cluster knows."""
        # Waiting is better than guessing: a job submitted a second time would train in the same folder.
        backoff = Backoff()
        while self.entries and not self.known():
            if backoff.failures == 0:
                self.say("an earlier call has submitted jobs; waiting until it is known what became of them.")
            time.sleep(min(5.0, backoff.failed()))
            self.backend.hurry()

    def known(self) -> bool:
        """Whether every entry is known to go on, to be done, or to be forgotten."""
        self.tracker.look_around()
        # All are looked at, not only up to the first unknown one: each look may settle one of them.
        unknown = [entry for entry in list(self.entries.values()) if not self._known(entry)]
        return not unknown

    def _known(self, entry: JournalEntry) -> bool:
        if not entry.active:
            return True
        # What nothing here can look at is judged by its own notes, if it has left any.
        if entry.cluster == "debug" or self.is_elsewhere(entry):
            self._judge_from_afar(entry)
            return True
        try:
            if entry.job_id is None and not self._find(entry):
                return entry.key not in self.entries
        except (SlurmBusyError, SlurmRefusedError):
            return False

        # A verdict, or a queue that shows it alive; a doubt is neither, and Snakemake waits for it.
        if (verdict := self.tracker.judge(entry)) is not None:
            # One that failed is dropped: Snakemake will ask for its outputs again, and then it is a new job.
            if not verdict.ok:
                self.drop(entry)
                self.say(f"a job of an earlier call has failed meanwhile: {verdict.message}")
            return True
        look = self.backend.look(entry)
        return look is not None and not look.ended and not self.tracker.in_doubt(entry)

    def _find(self, entry: JournalEntry) -> bool:
        """Its controller ended while it submitted, or another submits now: the job may be there."""
        # The other controller may have written the id since this one has read the journal.
        fresh = self.journal.read(entry.key)
        if fresh is not None and fresh.token == entry.token and fresh.job_id is not None:
            self.backend.name_files(entry, fresh.job_id)
            entry.state = fresh.state
            return True
        if (job_id := self.backend.find(entry)) is not None:
            self.backend.name_files(entry, job_id)
            self.journal.write(entry)
            return True
        # sbatch outlives a controller that is killed, so the job may still come;
        # later than this it will not.
        waited = time.monotonic() - self._since[entry.key]
        if waited > YOUNG_S or time.time() - entry.submitted > YOUNG_S:
            self._end(entry, "CANCELLED", "the controller ended before the job was submitted")
        return False

    def _end(self, entry: JournalEntry, state: str, message: str | None) -> None:
        entry.state, entry.message = state, message
        self.journal.write(entry)
        if state != "COMPLETED":
            self.drop(entry)

    def drop(self, entry: JournalEntry) -> None:
        """Its end has been noted: if Snakemake asks for the job again, it is a new one."""
        self.entries.pop(entry.key, None)

    # Jobs of another cluster, or processes of another machine

    def is_elsewhere(self, entry: JournalEntry) -> bool:
        """Whether nothing here can look at a job."""
        return (
            entry.cluster != self.backend.name
            or entry.host not in (None, self.backend.host)
            or entry.cluster_name not in (None, self.backend.cluster_name)
        )

    def _judge_from_afar(self, entry: JournalEntry) -> None:
        """Take what the job itself has noted; one that has noted no end may still run."""
        record = JobRecord.load(Path(entry.record))
        if record is not None and record.exit_code is not None:
            entry.absorb(record)
            self._end(entry, "FAILED" if record.exit_code else "COMPLETED", None)
        elif entry.cluster == "debug":  # it ran inside of a controller that is no more
            self._end(entry, "CANCELLED", "the controller ended while the job ran inside it")

    # What Snakemake asks for

    def jobs_making(self, key: str, outputs: Iterable[str]) -> list[JournalEntry]:
        """Entries whose jobs make (some of) the outputs: usually one; others where groups were cut anew."""
        # The usual case, and it costs one look-up for each of thousands of jobs.
        if (entry := self.entries.get(key)) is not None:
            return [entry]
        keys = dict.fromkeys(self._making[path] for path in outputs if path in self._making)
        return [self.entries[key] for key in keys if key in self.entries]

    def conflict(self, making: list[JournalEntry], outputs: Iterable[str]) -> str | None:
        """Why a job can neither be re-attached nor submitted now; None if nothing is in its way."""
        active = [entry for entry in making if entry.active]
        # First of all: a job that cannot be looked at cannot be followed, and a
        # second one would run beside it.
        if far := [entry for entry in active if self.is_elsewhere(entry)]:
            return self._explain_far(far[0])
        if not active or (len(making) == 1 and set(outputs) <= set(making[0].outputs)):
            return None
        jobs = as_list([f"{entry.name} ({entry.job_id})" for entry in active])
        return (
            f"jobs of an earlier call, which was grouped in another way, make part of its outputs: {jobs}. "
            "Run the same command again when they have ended, or cancel them: "
            f"{self.backend.cancel_command(active)}"
        )

    def _explain_far(self, entry: JournalEntry) -> str:
        where, hint = f"machine {entry.host}", "run the same command there to follow it"
        if entry.cluster == self.backend.name and entry.cluster_name:
            where = f"Slurm's cluster {entry.cluster_name}"
            hint = f"run the same command on a login node of {entry.cluster_name} to follow it"
        elif entry.cluster != self.backend.name:
            where = f"cluster {entry.cluster}"
            hint = f"follow it with --submitit-cluster {entry.cluster}"
        return (
            f"job {entry.job_id or entry.token} of an earlier call may still run on {where}: {hint}, or end "
            f"it there and delete {self.journal.path(entry.key)}"
        )

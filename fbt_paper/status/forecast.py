"""When all runs should be done, from how long the epochs of runs like them have taken."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from fbt_core.spec import RunSpec
from fbt_paper.status.states import RunStatus


def expect_end(statuses: Iterable[RunStatus], specs: Mapping[str, RunSpec], now: datetime) -> datetime | None:
    """When all runs that have not failed should be done, if as many go on at a time as now.

    None if nothing runs, and as long as nothing is known of how long some unfinished run takes: neither
    it nor one like it has finished an epoch.
    """
    statuses = list(statuses)
    # Failed runs are left out: nobody knows when somebody will fix them.
    running = [status for status in statuses if status.state == "running"]
    unfinished = [status for status in statuses if status.state not in ("done", "failed")]
    epochs = EpochTimes(statuses, specs)
    left = {status.run: seconds_left(status, epochs) for status in unfinished}
    known = [seconds for seconds in left.values() if seconds is not None]
    # A single unknown run would make the sum too small.
    if not running or len(known) < len(left):
        return None
    # Divided among those that run; but no end comes before that of the longest.
    longest = max(left[status.run] or 0.0 for status in running)
    return now + timedelta(seconds=max(sum(known) / len(running), longest))


def seconds_left(status: RunStatus, epochs: EpochTimes) -> float | None:
    """What the run itself expects, else its epochs to come times the usual seconds of one, if known."""
    # Only of a running run: an interrupted one's own expectation is of before it stopped.
    if status.state == "running" and status.seconds_left is not None:
        return status.seconds_left
    per_epoch = status.seconds_per_epoch or epochs.typical(status.run)
    if per_epoch is None:
        return None
    finished = max(status.epoch - 1, 0)  # the present epoch is counted whole
    return per_epoch * max((status.epochs or 0) - finished, 0)


class EpochTimes:
    """How long an epoch takes in runs like a given one: same dataset and networks, else same dataset."""

    def __init__(self, statuses: Iterable[RunStatus], specs: Mapping[str, RunSpec]) -> None:
        self.specs = specs
        self.known: dict[tuple[object, ...], list[float]] = {}
        for status in statuses:
            if status.seconds_per_epoch and status.run in specs:
                for likeness in likenesses(specs[status.run]):
                    self.known.setdefault(likeness, []).append(status.seconds_per_epoch)

    def typical(self, run: str) -> float | None:
        """The median over the runs most like it; None if none of its dataset has finished an epoch."""
        if run not in self.specs:
            return None
        times = (self.known.get(likeness) for likeness in likenesses(self.specs[run]))
        return next((statistics.median(seconds) for seconds in times if seconds), None)


def likenesses(spec: RunSpec) -> Iterator[tuple[object, ...]]:
    """What runs may share that decides how long an epoch takes, the closest likeness first."""
    networks = spec.student.architecture, spec.teacher and spec.teacher.architecture
    yield spec.dataset.name, *networks, spec.method.name
    yield spec.dataset.name, *networks
    yield (spec.dataset.name,)

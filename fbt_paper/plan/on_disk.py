"""What the plan does not say of results: which are there, and which were made with weights that are gone.

A run's id states what it is trained from, but a teacher that is trained again under its id (on another
machine, with other threads) may get other bytes. Each run notes the sha256 of the weights that it read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from fbt_core.run_files import METRICS_FILE
from fbt_paper.plan.runs import Plan

OWN, TEACHERS, INITIAL = "weights_sha256", "teacher_weights_sha256", "initial_weights_sha256"
"""Keys of a run's metrics: the weights it made, those of its teacher, and those its student began with."""


def is_finished(folder: Path, run: str) -> bool:
    """Whether a run has its result."""
    return (folder / run / METRICS_FILE).exists()


def awaited(plan: Plan, runs: Iterable[str], folder: Path) -> tuple[str, ...]:
    """These runs, and of those they need the ones that are there or that an unfinished run has yet to read.

    The others were deleted after all that read them had finished: nothing is trained for them.
    """
    wanted: dict[str, None] = {}
    for run in runs:
        before = awaited(plan, plan.runs[run].needed_runs(), folder)
        finished = is_finished(folder, run)
        wanted.update({other: None for other in before if not finished or is_finished(folder, other)})
        wanted[run] = None
    return tuple(wanted)


def outdated(plan: Plan, runs: Iterable[str], folder: Path) -> Iterator[tuple[str, str]]:
    """(run, needed run) for each finished run that read other weights than the run it needs has now.

    Runs that have not noted what they read, as made by an older version, are not judged.
    """
    for run in runs:
        spec = plan.runs[run]
        for network, key in ((spec.teacher, TEACHERS), (spec.student, INITIAL)):
            if network is None or not network.weights.startswith("run:"):
                continue
            needed = network.weights.removeprefix("run:")
            read, now = _digests(folder / run).get(key), _digests(folder / needed).get(OWN)
            if read and now and read != now:
                yield run, needed


def _digests(folder: Path) -> Mapping[str, str]:
    try:
        return _read_digests(folder / METRICS_FILE, (folder / METRICS_FILE).stat().st_mtime_ns)
    except OSError:
        return {}


@cache
def _read_digests(path: Path, changed: int) -> Mapping[str, str]:
    """The digests in a run's metrics. Kept while the file is unchanged: many tables ask for the same runs."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(metrics[key]) for key in (OWN, TEACHERS, INITIAL) if metrics.get(key)}
    except (OSError, ValueError, AttributeError):
        return {}


def describe_outdated(plan: Plan, runs: Iterable[str], folder: Path) -> list[str]:
    """A sentence for each run that was trained again after others had read its weights."""
    readers: dict[str, list[str]] = {}
    for run, needed in outdated(plan, runs, folder):
        readers.setdefault(needed, []).append(run)
    return [
        f"{needed} was trained again and has other weights now than those that {', '.join(others)} read; "
        "delete the folders of these to train them again"
        for needed, others in readers.items()
    ]

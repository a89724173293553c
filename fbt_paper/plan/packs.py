"""Packs: which runs train together, in one process on one stream of batches with one pass of their teacher.

A pack is a job whose only output is a marker, `results/<scale>/packs/<pack>.done`; each of its runs is
published by a job of its own. Which runs form a pack follows from the plan and from what is on disk, and is
written to `<pack>.json` beside the marker when its job is submitted:

    a run                                                  is trained
    -----------------------------------------------------  ----------------------------------------
    whose results are there                                no more
    whose results wait to be published                     no more: it is published
    of a pack that was submitted and has not ended         in that pack, with the same runs
    that failed in a pack, or whose own job waits or runs  alone
    that others need, and that has no teacher to share     alone: what waits for it need not wait longer
    any other                                              in a new pack, if another may share it
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fbt_core.files import make_folder, write_json
from fbt_core.packs import read_marker, stream_key, teacher_key
from fbt_core.run_files import METRICS_FILE, is_ready, read_json
from fbt_core.spec import RunSpec

JOURNAL = Path(".snakemake/submitit")
"""Where the executor keeps its jobs (plugin/README.md)."""

Fits = Callable[[Sequence[RunSpec]], bool]
Kind = Callable[[RunSpec], object]


@dataclass(frozen=True)
class Packing:
    """Which runs are trained in which pack, by the pack's id, and which runs are only published."""

    packs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    """Packs whose jobs are in a queue or run: nothing of them may change."""
    ready: frozenset[str] = frozenset()
    """Runs whose results wait to be published."""

    def pack_of(self, run: str) -> str | None:
        """The pack that trains a run; None if it trains alone, or not at all."""
        return next((pack for pack, members in self.packs.items() if run in members), None)

    @property
    def published(self) -> tuple[str, ...]:
        """Runs that a job of their own publishes, trained or to be trained in a pack."""
        return tuple(dict.fromkeys([*self.ready, *(run for runs in self.packs.values() for run in runs)]))


# ---------------------------------------------------------------- which runs go together


@dataclass
class _Pack:
    """A pack while it is filled."""

    stream: object
    shared: object
    """The teacher, and what its runs need; of runs without either: None."""
    runs: list[str]


def compose(
    specs: Mapping[str, RunSpec], runs: Iterable[str], kind: Kind, fits: Fits
) -> list[tuple[str, ...]]:
    """Packs of two runs or more out of these, each as full as `fits` allows, in the order of the runs.

    `kind` says what must be equal in a pack beside the stream of batches, the teacher, and what the runs
    need: with equal needs no pack waits for itself, nor for what only runs need that nobody asked for.
    """
    needed = {other for spec in specs.values() for other in spec.needed_runs()}
    packs: list[_Pack] = []
    for run in runs:
        stream, shared = (stream_key(specs[run]), kind(specs[run])), shared_of(specs[run])
        if specs[run].teacher is None and run in needed:
            continue
        room = (
            pack
            for pack in packs
            if pack.stream == stream
            and pack.shared == shared
            and fits([specs[member] for member in (*pack.runs, run)])
        )
        if (pack := next(room, None)) is None:
            packs.append(_Pack(stream, shared, [run]))
        else:
            pack.runs.append(run)
    return [tuple(pack.runs) for pack in packs if len(pack.runs) > 1]


def shared_of(spec: RunSpec) -> object:
    """The teacher of a run and what it needs, runs and timm's weights; None if there are neither."""
    needs = {*spec.needed_runs(), spec.student.weights} - {"none"}
    if not spec.teacher and not needs:
        return None
    return teacher_key(spec), tuple(sorted(needs))


# ---------------------------------------------------------------- packs as files


class PackFiles:
    """The packs of one scale on disk: `packs/<pack>.json` holds its runs, `<pack>.done` is its marker."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def marker(self, pack: str) -> str:
        """The file that says how each run of a pack ended."""
        return f"{self.folder}/{pack}.done"

    def record(self, pack: str, runs: Sequence[str]) -> None:
        """Write down which runs a pack trains, when its job is submitted."""
        make_folder(Path(self.folder))
        write_json(Path(self.folder, f"{pack}.json"), {"runs": list(runs)})

    def runs(self, pack: str) -> tuple[str, ...]:
        """The runs of a submitted pack; none if it was not submitted."""
        content = read_json(Path(self.folder, f"{pack}.json")) or {}
        return tuple(map(str, content.get("runs", ())))

    def submitted(self) -> dict[str, tuple[str, ...]]:
        """The runs of every submitted pack."""
        return {path.stem: self.runs(path.stem) for path in sorted(Path(self.folder).glob("*.json"))}

    def new_id(self, runs: Sequence[str]) -> str:
        """The id of a pack of these runs that has not ended: ten digits that follow from them."""
        # A second pack of the same runs, whose results were deleted, must not take the first one's marker.
        for attempt in itertools.count():
            text = "\n".join([*runs, str(attempt)] if attempt else runs)
            pack = hashlib.sha256(text.encode()).hexdigest()[:10]
            if not Path(self.marker(pack)).exists():
                return pack
        raise AssertionError


def find_packing(
    specs: Mapping[str, RunSpec], files: PackFiles, runs_folder: Path, kind: Kind, fits: Fits
) -> Packing:
    """The packs that the runs' state on disk asks for; `specs` in the order in which packs are filled."""
    # Only runs without metrics: of others Snakemake may want a part made again, and that is no pack's work.
    unfinished = [run for run in specs if not (runs_folder / run / METRICS_FILE).exists()]
    ready = frozenset(run for run in unfinished if is_ready(runs_folder / run))
    submitted = files.submitted()
    ended = {pack for pack in submitted if Path(files.marker(pack)).exists()}
    queued = queued_outputs()
    running = {pack for pack in set(submitted) - ended if files.marker(pack) in queued}
    endings = [ending for pack in ended for ending in read_marker(Path(files.marker(pack))).items()]
    failed = {run for run, ending in endings if ending.state == "failed"}

    # Packs that were submitted and have not ended keep their runs: a job in a queue cannot be changed.
    packs = {pack: submitted[pack] for pack in sorted(running)}
    alone = {run for run in unfinished if str(runs_folder / run / METRICS_FILE) in queued}
    left = [run for run in unfinished if run not in ready | failed | alone]
    for pack in sorted(set(submitted) - ended - running):
        taken = {run for runs in packs.values() for run in runs}
        runs = tuple(run for run in submitted[pack] if run in left and run not in taken)
        # Not if it is larger than the settings now allow: whoever lowers `pack` wants smaller ones.
        if len(runs) > 1 and fits([specs[run] for run in runs]):
            packs[pack] = runs

    taken = {run for runs in packs.values() for run in runs}
    for runs in compose(specs, [run for run in left if run not in taken], kind, fits):
        packs[files.new_id(runs)] = runs
    return Packing(packs, frozenset(running), ready)


def queued_outputs() -> set[str]:
    """What the jobs make that are in a queue or run, by the executor's journal."""
    try:
        from snakemake_executor_plugin_submitit.journal import read_jobs
    except ImportError:  # the executor is a distribution of its own
        return set()
    return {path for entry in read_jobs(JOURNAL) if entry.active for path in entry.outputs}

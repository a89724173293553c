"""What the runs of a cell measured, in the form that intervals need: per seed, the images that were right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fbt_core.run_files import PREDICTIONS_FILE
from fbt_paper.plan.runs import Plan
from fbt_paper.tables.statistics import (
    Estimate,
    Outcomes,
    difference,
    estimate,
    unpaired_difference,
)

EPOCH = "last"
"""Verdicts use the last epoch: the best epoch was chosen on the test images, which voids an interval."""


@dataclass(frozen=True)
class RunOutcome:
    """One run: its last epoch's top-1 (percent), its test images, and which it got right if that was kept."""

    top1: float
    images: int
    correct: Outcomes | None


@dataclass(frozen=True)
class CellOutcome:
    """A cell's runs by seed; `missing` names the runs that are planned but not finished."""

    runs: Mapping[int, RunOutcome]
    missing: tuple[str, ...] = ()


def read_cell(plan: Plan, folder: Path, path: str) -> CellOutcome:
    """The outcomes behind `table/row/column`; the runs lie in `folder`."""
    table, row, column = path.split("/")
    cell = plan.tables[table].cells.get((row, column))
    outcomes: dict[int, RunOutcome] = {}
    missing: list[str] = []
    # By seed: cells are compared seed by seed, whatever else their runs differ in.
    for run in cell.runs if cell is not None else ():
        outcome = read_run(folder / run)
        if outcome is None:
            missing.append(run)
        else:
            outcomes[plan.runs[run].seed] = outcome
    return CellOutcome(outcomes, tuple(missing))


def read_run(folder: Path) -> RunOutcome | None:
    """One run's outcome; None if it has not finished."""
    try:
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    except FileNotFoundError:
        return None
    images = int(metrics["spec"]["dataset"]["test_images"])
    return RunOutcome(float(metrics[EPOCH]["top1"]), images, _correct(folder / PREDICTIONS_FILE, images))


def _correct(path: Path, images: int) -> Outcomes | None:
    """Which test images the last epoch's weights got right; None for a run that kept no predictions."""
    if not path.exists():
        return None
    # A pickle would run code of whoever wrote the file.
    with np.load(path, allow_pickle=False) as kept:
        correct: Outcomes = kept[EPOCH] == kept["labels"]
    # Another test set than the spec's cannot be paired image by image.
    return correct if len(correct) == images else None


def compare(better: CellOutcome, than: CellOutcome) -> Estimate:
    """The difference of two cells, paired by seed and image as far as both allow it."""
    common = sorted(set(better.runs) & set(than.runs))
    sides = [[cell.runs[seed] for seed in common] for cell in (better, than)]
    first, second = (stacked(runs) for runs in sides)
    if first is not None and second is not None and first.shape == second.shape:
        return difference(first, second)
    # Without a common seed nothing pairs, so each side keeps all its runs.
    if not common:
        sides = [list(cell.runs.values()) for cell in (better, than)]
    # The smaller test set: the wider interval is the safe one.
    images = min(run.images for runs in sides for run in runs)
    return unpaired_difference([run.top1 for run in sides[0]], [run.top1 for run in sides[1]], images)


def compare_means(pairs: list[tuple[CellOutcome, CellOutcome]]) -> Estimate:
    """The mean over pairs of the differences: images and seeds that pairs share count once."""
    parts: list[NDArray[np.float64]] = []
    for better, than in pairs:
        common = sorted(set(better.runs) & set(than.runs))
        first = stacked([better.runs[seed] for seed in common])
        second = stacked([than.runs[seed] for seed in common])
        if first is None or second is None or first.shape != second.shape:
            parts = []
            break
        parts.append(100.0 * (first.astype(np.float64) - second.astype(np.float64)))
    if parts and len({part.shape for part in parts}) == 1:
        # Averaged image by image: pairs share the test set, so an image that is hard in all counts once.
        return estimate(np.mean(parts, axis=0))
    # Without predictions that pair: means of the pairs' estimates, as if their chances always added up.
    estimates = [compare(better, than) for better, than in pairs]
    return Estimate(
        mean=float(np.mean([part.mean for part in estimates])),
        error=float(np.mean([part.error for part in estimates])),
        freedom=min(part.freedom for part in estimates),
        sources=estimates[0].sources,
    )


def stacked(runs: list[RunOutcome]) -> Outcomes | None:
    """The runs' outcomes as (seeds, images); None unless all kept their predictions on the same images."""
    kept = [run.correct for run in runs if run.correct is not None]
    if not kept or len(kept) < len(runs) or len({len(correct) for correct in kept}) > 1:
        return None
    return np.stack(kept)

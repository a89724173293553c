"""Runs that train together on one stream of batches: which may, and how such a pack ended.

Needs no torch: the planner groups runs by these keys, and a job that publishes a run reads the pack's marker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_json
from fbt_core.run_files import read_json
from fbt_core.spec import RunSpec

State = Literal["ready", "complete", "failed"]


def stream_settings(spec: RunSpec) -> dict[str, Any]:
    """What a run's batches follow from, and what else is one for all runs of a pack, by path in the spec.

    Mixed targets are smoothed where they are mixed, so the smoothing counts only there.
    """
    content = spec.model_dump(mode="json", include={"dataset", "recipe", "test_crop"})
    # Off is 0 or None in YAML; either mixes nothing.
    mixes = spec.recipe.augmentation.mixup or spec.recipe.augmentation.cutmix
    names = ["epochs", "batch_size", "normalisation_batch", "allow_changed_batch", "precision"]
    names += ["augmentation", "label_smoothing"] if mixes else ["augmentation"]
    return {
        "dataset": content["dataset"],
        "seed": spec.seed,
        "test_crop": content["test_crop"],
        "student.mean": spec.student.mean,
        "student.std": spec.student.std,
        **{f"recipe.{name}": content["recipe"][name] for name in names},
    }


def teacher_settings(spec: RunSpec) -> dict[str, Any]:
    """The teacher that a run shares, and in whose normalisation it looks; empty for a run without one."""
    if spec.teacher is None:
        return {}
    return {
        "teacher": spec.teacher.model_dump(mode="json"),
        "recipe.teacher_normalisation": spec.recipe.teacher_normalisation,
    }


def stream_key(spec: RunSpec) -> str:
    """Equal for runs that see the same batches, with whatever teacher."""
    return json.dumps(stream_settings(spec), sort_keys=True)


def teacher_key(spec: RunSpec) -> str | None:
    """Equal for runs that share a teacher; None for a run without one, which goes with any.

    Runs of one stream key may share a pack if their teacher keys, None left out, are equal.
    """
    settings = teacher_settings(spec)
    return json.dumps(settings, sort_keys=True) if settings else None


def check_together(specs: Sequence[RunSpec]) -> None:
    """Refuse runs that may not share a pack: a UserError names what differs, and between which of them."""
    ids = [spec.id for spec in specs]
    # Two learners of one run would write to one folder.
    if twice := sorted({run for run in ids if ids.count(run) > 1}):
        raise UserError("this run is named more than once", where=twice[0])
    for settings_of in (stream_settings, teacher_settings):
        # Runs without a teacher go with any, so only those that have one are compared.
        having = [(spec.id, settings) for spec in specs if (settings := settings_of(spec))]
        for run, settings in having[1:]:
            first, expected = having[0]
            if differing := [name for name, value in settings.items() if value != expected[name]]:
                what = f"cannot share a pack with {first}: {', '.join(differing)} differ"
                raise UserError(what, where=run, hint="train them in packs of their own")


# ---------------------------------------------------------------- how a pack ended


@dataclass(frozen=True)
class Ending:
    """How a run of a pack ended: its results wait to be published, were published before, or why neither."""

    state: State
    error: str | None = None


def write_marker(path: Path, endings: Mapping[str, Ending]) -> None:
    """Write how each run of a pack ended, whole or not at all."""
    make_folder(path.parent)
    # Plain words, so that a reader needs no class of ours.
    members = {run: {"state": ending.state, "error": ending.error} for run, ending in endings.items()}
    write_json(path, {"members": members})


def read_marker(path: Path) -> dict[str, Ending]:
    """How each run of a pack ended, by run id; empty if the pack has not ended."""
    members = (read_json(path) or {}).get("members", {})
    return {run: Ending(ending["state"], ending["error"]) for run, ending in members.items()}

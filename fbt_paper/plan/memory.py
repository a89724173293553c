"""How much of a GPU's memory a training takes, counted by `fbt_core.measure.training_memory`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fbt_core.spec import RunSpec
from fbt_paper.plan.bill import BANK_METHOD, read_counts

MEMORY_FILE = Path(__file__).parent / "data" / "training_memory.json"
VECTORS = ("cc", "rkd", "dkd", "dist", "crd", "rsd", "srd", "ldrld")
LIKE = {"ofa": "fbt", "fitnet": "fbt", "simkd": "fbt", **dict.fromkeys(VECTORS, "kd")}
"""Methods that were not counted: with fewer modules than FBT, or that keep vectors only, as KD."""
FLOAT = 4  # bytes of a weight, a gradient and each of the optimiser's states
OPTIMISER_STATES = {"sgd": 1, "adamw": 2}
BANKS = 4
"""CRD's two banks and the copy of each that the backward pass needs."""
BANK_SCORES = 4
"""Numbers per image of the batch and image of the bank that live at the same time, for both banks."""


def read_memory(path: Path = MEMORY_FILE) -> dict[str, Any]:
    """Weights and bytes per image by method and pair."""
    return read_counts(path, "fbt_core.measure.training_memory")


def training_memory_mb(run: RunSpec, images: int, counts: Mapping[str, Any]) -> float | None:
    """MB (1e6 bytes) of a GPU that trains with so many images of the batch; None if it was not counted.

    Weights of all networks, gradients, optimiser's states, average of the weights, and what the backward
    pass keeps of each image. CUDA itself takes some hundred MB more.
    """
    if run.teacher is None:
        return None
    method = LIKE.get(run.method.name, run.method.name)
    entry = counts.get(method, {}).get(f"{run.teacher.architecture}__{run.student.architecture}")
    if entry is None:
        return None
    copies = 2 + OPTIMISER_STATES[run.recipe.optimizer.name] + (run.recipe.ema_decay is not None)
    weights: int = FLOAT * (entry["frozen"] + copies * entry["trainable"])
    kind = "half" if run.recipe.precision.endswith("16") else "float32"
    per_image: float = entry[kind] * (run.dataset.image_size / 224) ** 2
    return (weights + images * per_image + _bank_bytes(run, images)) / 1e6


def _bank_bytes(run: RunSpec, images: int) -> int:
    """CRD compares each image of the batch with all of its two banks."""
    if run.method.name != BANK_METHOD:
        return 0
    width = int(str(run.method.parameters["width"]))
    return FLOAT * run.dataset.train_images * (BANKS * width + BANK_SCORES * images)

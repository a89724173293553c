"""What of a finished run travels, what it must be, and what counts when two runs are compared.

Nothing here trusts a file: a bundle comes from somebody else's machine. The id is computed again from the
spec, the digest of the weights and the score from what they are said to describe, and nothing that could run
code (pickles, checkpoints) is read at all.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from fbt_core.errors import UserError
from fbt_core.run_files import HISTORY_FILE, METRICS_FILE, PREDICTIONS_FILE, SPEC_FILE, WEIGHTS_FILE
from fbt_core.spec import RunSpec, parse_spec

ORIGIN_FILE = "origin.json"
MIB = 2**20
LARGEST = {
    SPEC_FILE: MIB,
    METRICS_FILE: 64 * MIB,
    HISTORY_FILE: 64 * MIB,
    PREDICTIONS_FILE: 64 * MIB,
    WEIGHTS_FILE: 8192 * MIB,
    ORIGIN_FILE: MIB,
}
"""The files of a run that travel, and the most bytes of each; checkpoints and logs stay where they are."""
NEEDED = (SPEC_FILE, METRICS_FILE, HISTORY_FILE, WEIGHTS_FILE)
COMPARED = (*NEEDED, PREDICTIONS_FILE)
NAMES = frozenset({"host", "user", "job_id", "cuda_visible_devices"})
"""Keys of JSON whose values name people, machines or their parts."""
TIES = 1.0
"""Points by which predictions and top-1 may differ: logits of few bits tie, and either class may count."""


@dataclass(frozen=True)
class TravellingRun:
    """A run that has passed every check: its spec, its metrics, and the sha256 of each of its files."""

    spec: RunSpec
    metrics: Mapping[str, Any]
    files: Mapping[str, str]

    def differences(self, other: TravellingRun) -> list[str]:
        """In words, what differs between two runs of one id; names of hosts and users do not count."""
        mine, theirs = self.contents, other.contents
        differing = [name for name in COMPARED if mine.get(name) != theirs.get(name)]
        scores = [f"{run.metrics['best']['top1']:.2f}" for run in (self, other)]
        shown = f" (best top-1 {scores[0]} here, {scores[1]} there)"
        return [f"{name}{shown if name == METRICS_FILE else ''}" for name in differing]

    @property
    def contents(self) -> dict[str, str]:
        """The sha256 of each compared file; of the metrics, that of the part without names."""
        files = {name: self.files[name] for name in COMPARED if name in self.files}
        return {**files, METRICS_FILE: sha256_of(as_json(without_names(self.metrics)))}

    @property
    def digest(self) -> str:
        """One sha256 for all that the run states; the same whether names were taken out or not."""
        return sha256_of(as_json(self.contents))


def check_run(folder: Path) -> TravellingRun:
    """The finished run in this folder, its files checked against each other; a UserError names the fault."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError("is missing: only finished runs travel", where=str(folder / name))
    metrics, spec = _read_object(folder / METRICS_FILE), _read_spec(folder / SPEC_FILE)
    try:
        stated = parse_spec(json.dumps(metrics.get("spec")))
        best = float(metrics["best"]["top1"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"is no run's result ({reason})", where=str(folder / METRICS_FILE)) from None
    # The folder, both specs and the metrics must be those of one run, by the id that the spec gives.
    for where, run in (
        (SPEC_FILE, spec.id),
        (METRICS_FILE, stated.id),
        ("metrics' `run`", metrics.get("run")),
    ):
        if run != folder.name:
            raise UserError(f"{where} is that of another run, {run}", where=str(folder))
    files = {name: file_sha256(folder / name) for name in LARGEST if (folder / name).is_file()}
    if files[WEIGHTS_FILE] != metrics.get("weights_sha256"):
        raise UserError("is not the file that metrics.json names by sha256", where=str(folder / WEIGHTS_FILE))
    _check_weights(folder / WEIGHTS_FILE)
    if _read_history(folder / HISTORY_FILE) != metrics.get("history"):
        raise UserError("is not the history that metrics.json holds", where=str(folder / HISTORY_FILE))
    if PREDICTIONS_FILE in files:
        _check_predictions(folder / PREDICTIONS_FILE, spec.dataset.test_images, best)
    return TravellingRun(spec, metrics, files)


def without_names(content: Any) -> Any:
    """A JSON value whose entries that name hosts, users, jobs or devices are empty; the spec holds none."""
    if isinstance(content, list):
        return [without_names(value) for value in content]
    if not isinstance(content, dict):
        return content
    return {key: None if key in NAMES else without_names(value) for key, value in content.items()}


def as_json(content: Any) -> bytes:
    """A JSON value as bytes: the same value, the same bytes."""
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is no JSON ({str(error)[:100]})", where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError("is no JSON object", where=str(path))
    return content


def _read_spec(path: Path) -> RunSpec:
    try:
        return parse_spec(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"is no spec ({' '.join(str(error).split())[:150]})", where=str(path)) from None


def _read_history(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"is no history ({str(error)[:100]})", where=str(path)) from None


def _check_weights(path: Path) -> None:
    """Only the header is read: names, shapes and offsets of tensors, which must fill the file exactly."""
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"holds no safetensors ({error})", where=str(path)) from None


def _check_predictions(path: Path, images: int, best: float) -> None:
    """A class for each test image, as small whole numbers, which give the score that the metrics state."""
    try:
        with zipfile.ZipFile(path) as inside:
            if sum(entry.file_size for entry in inside.infolist()) > LARGEST[PREDICTIONS_FILE]:
                raise UserError("is larger unpacked than predictions are", where=str(path))
        with np.load(path, allow_pickle=False) as arrays:
            classes = {name: arrays[name] for name in arrays.files}
        right = 100 * float((classes["best"] == classes["labels"]).mean())
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        raise UserError(f"holds no predictions ({error})", where=str(path)) from None
    if any(array.shape != (images,) or array.dtype.kind != "u" for array in classes.values()):
        raise UserError(f"does not hold a class for each of {images} test images", where=str(path))
    if abs(right - best) > TIES:
        what = f"its best epoch has top-1 {right:.2f} %, metrics.json states {best:.2f} %"
        raise UserError(what, where=str(path))

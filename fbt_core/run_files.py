"""What a run leaves on disk, `runs/<run id>/`: the names of its files, and how they are read.

Needs no torch. A file that is missing or half written counts as not there yet, so that any login shell can
look while a node writes. All text is made safe for a terminal: whoever can write a log must not be able to
send escape sequences to its reader.
"""

from __future__ import annotations

import json
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.json"
HISTORY_FILE = "history.jsonl"
LOG_FILE = "log.txt"
METRICS_FILE = "metrics.json"
WEIGHTS_FILE = "weights.safetensors"
PREDICTIONS_FILE = "predictions.npz"
READY_FOLDER = "ready"  # where a pack leaves metrics and weights
TAIL_BYTES = 65536


def has_results(folder: Path) -> bool:
    """Whether both results of a run lie in a folder: its weights, and its metrics, which come last."""
    return all((folder / name).exists() for name in (METRICS_FILE, WEIGHTS_FILE))


def is_ready(folder: Path) -> bool:
    """Whether a pack left both results of the run of this folder to be published."""
    return has_results(folder / READY_FOLDER)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is not there (yet) or not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return printable(content) if isinstance(content, dict) else None


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What a run noted at each epoch's end, in order; of an epoch written twice, the last."""
    try:
        lines = (folder / HISTORY_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    by_epoch = {}
    for line in lines:
        try:
            epoch = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half written
        if isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int):
            by_epoch[epoch["epoch"]] = printable(epoch)
    return [by_epoch[number] for number in sorted(by_epoch)]


def read_tail(path: Path, lines: int = 5) -> tuple[str, ...]:
    """The last lines of a text file that are not empty; only its last 64 KiB are read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    written = (printable(line.rstrip()) for line in text.splitlines() if line.strip())
    return tuple(deque(written, maxlen=lines))


def printable(content: Any) -> Any:
    r"""A text, or a nested JSON value, whose control characters are written out: ESC becomes \x1b.

    What moves the cursor, hides or reorders text (the Unicode categories of str.isprintable) is written out
    as well; white space becomes a blank.
    """
    if isinstance(content, str):
        if content.isprintable():
            return content
        return "".join(" " if c.isspace() else c if c.isprintable() else ascii(c)[1:-1] for c in content)
    if isinstance(content, dict):
        return {printable(key): printable(value) for key, value in content.items()}
    if isinstance(content, list):
        return [printable(value) for value in content]
    return content


def parse_time(text: object) -> datetime | None:
    """An ISO time with its zone (this machine's zone if the text names none), or None."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        return None


def as_number(value: object) -> float | None:
    """The value if it is a number, else None (JSON's null, a missing key)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)

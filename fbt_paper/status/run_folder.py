"""What a run leaves on disk, read while it is being written: folders, never processes.

Every function answers from the files of `<runs>/<run id>/`; a file that is missing or half written is
"not there yet", so that any login shell can look while a cluster writes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_json(path: Path) -> Record | None:
    """The object in a JSON file, or None where the file is not there (yet) or not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_history(folder: Path) -> list[Record]:
    """One record per epoch that is whole on disk, in order; of an epoch written twice, the last."""
    try:
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    by_epoch = {record["epoch"]: record for record in _parse_lines(lines)}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _parse_lines(lines: list[str]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("epoch"), int):
            yield record


def read_tail(path: Path, lines: int = 5) -> tuple[str, ...]:
    """The last non-empty lines of a text file (only its last 64 KiB are read); empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(deque((line.rstrip() for line in text.splitlines() if line.strip()), maxlen=lines))


def parse_time(text: object) -> datetime | None:
    """An ISO time with its zone (this machine's zone where the text names none), or None."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


def number(value: object) -> float | None:
    """The value where it is a number, else None (JSON's null, a missing key)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

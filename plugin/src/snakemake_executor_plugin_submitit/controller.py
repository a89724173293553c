"""The controller (the Snakemake that a user has started): who it is, so that its lock can be explained."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.journal import Journal
from snakemake_executor_plugin_submitit.record import write_json

__all__ = ["FOLDER", "forget_controller", "note_controller", "report_lock"]

FOLDER = Path(".snakemake") / "submitit"


def note_controller(folder: Path) -> None:
    """Write down which process works in this folder now."""
    # Host and start belong to the pid: folders are shared by machines, and pids are used again.
    content = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": started(os.getpid()),
        "since": time.time(),
    }
    write_json(folder / "controller.json", content)


def forget_controller(folder: Path) -> None:
    """The controller ends in order and leaves no lock."""
    (folder / "controller.json").unlink(missing_ok=True)


def started(pid: int) -> float | None:
    """When a process started, None if there is none: pids are used again."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_process(note: dict[str, Any]) -> bool:
    """Whether the noted process of this machine still runs; its start is computed anew, to about a second."""
    start = started(int(note.get("pid", 0)))
    return start is not None and abs(start - float(note.get("started") or 0.0)) < 2.0


def report_lock() -> None:
    """If Snakemake will refuse to start because of a lock, say whose it is and how to fix it."""
    message = explain_lock(Path.cwd())
    if message:
        print(message, file=sys.stderr, flush=True)


def explain_lock(folder: Path) -> str | None:
    """Whose lock lies in a folder and what to do about it; None if there is none."""
    # Snakemake's lock names no process: only this note knows whose it is.
    locks = folder / ".snakemake" / "locks"
    controller = read_note(folder / FOLDER / "controller.json")
    if controller is None or not locks.is_dir() or not any(locks.iterdir()):
        return None
    who = f"process {controller.get('pid')} on {controller.get('host')}"
    # Processes of another machine cannot be looked at, so nothing is said about whether it still runs.
    if controller.get("host") != socket.gethostname():
        return (
            f"submitit: this folder is in use by or was left locked by {who}: "
            "look there before `snakemake --unlock`."
        )
    # To unlock now would let two controllers write the same files.
    if is_process(controller):
        return f"submitit: another snakemake works in this folder ({who}); wait for it or end it first."
    count = sum(entry.active for entry in Journal(folder / FOLDER / "journal").entries())
    return (
        f"submitit: the lock in this folder is stale: {who} is gone. Fix: `snakemake --unlock`, then the "
        f"same command again; it will find its {count} submitted jobs and submit none of them twice."
    )


def read_note(path: Path) -> dict[str, Any] | None:
    """The note of the last controller, or None."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

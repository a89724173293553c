"""What a check of a cluster or a machine found, and how it looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is fine, what it is, and how to fix it if it is not."""

    ok: bool
    what: str
    hint: str = ""


def show_checks(checks: Iterable[Check], command: str) -> int:
    """Print every check; 0 if all are fine and `command` can be called, 1 if something must be fixed."""
    missing = 0
    for check in checks:
        print(f"{'ok     ' if check.ok else 'MISSING'} {check.what}")
        if not check.ok and check.hint:
            print(f"        hint: {check.hint}")
        missing += not check.ok
    if missing:
        print(f"{missing} things to fix")
        return 1
    print(f"everything is there: {command}")
    return 0

"""Errors a reader meets, each one line: where, what, the valid choices, the nearest match, how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix; printed as one line, never as a traceback.

    `where` is a file, a path inside it or a setting; `given` is compared with `choices`
    for the nearest match.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        given: str | None = None,
        choices: Iterable[str] | None = None,
        hint: str | None = None,
    ) -> None:
        parts = [f"{where}: {what}" if where else what, *_choice_parts(given, choices)]
        parts += [hint] if hint else []
        super().__init__("; ".join(" ".join(part.split()) for part in parts))
        self.what, self.where, self.hint = what, where, hint


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that belongs to another run."""


class NonFiniteLoss(UserError):  # noqa: N818 - the words of the house
    """A loss or a weight became NaN or infinite; the last good checkpoint is kept."""

    def __init__(self, what: str, where: str) -> None:
        hint = "the last good checkpoint is kept; lower the learning rate, clip gradients or use float32"
        super().__init__(what, where=where, hint=hint)


class Interrupted(Exception):  # noqa: N818
    """A signal asked the run to stop; its state is saved and the same command continues it."""

    exit_code = 75


def _choice_parts(given: str | None, choices: Iterable[str] | None) -> list[str]:
    """'valid choices: ...' and 'did you mean ...?' where they apply."""
    if choices is None:
        return []
    names = sorted(str(choice) for choice in choices)
    parts = [f"valid choices: {', '.join(names) or 'none'}"]
    nearest = difflib.get_close_matches(given or "", names, n=1)
    return parts + ([f"did you mean '{nearest[0]}'?"] if nearest else [])

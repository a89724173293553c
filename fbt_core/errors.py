"""Errors a reader meets, each one line: where, what, the valid choices, the nearest match, how to fix it.

Every error that a user can fix is a UserError; any other exception is a bug of ours and shows its traceback.
"""

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
        given: str | None = None,  # words: allow
        choices: Iterable[str] | None = None,
        hint: str | None = None,
    ) -> None:
        parts = [f"{where}: {what}" if where else what]
        if choices is not None:
            parts.append(nearest(given, choices))
        if hint:
            parts.append(hint)
        # Pieces of a message may be wrapped over lines of code; a log shows it as one.
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


class TooLarge(Interrupted):
    """The memory does not hold the runs of a pack together: several processes end, and halves begin anew."""

    exit_code = 76


def nearest(name: object, choices: Iterable[object]) -> str:
    """The valid choices and the nearest match, as the tail of a message."""
    # Sorted, so that the same mistake gives the same message.
    names = sorted(str(choice) for choice in choices)
    return "; ".join([f"valid: {', '.join(names) or 'none'}", *did_you_mean(name, names)])


def did_you_mean(name: object, choices: Iterable[str], count: int = 1) -> list[str]:
    """'did you mean ...?' with at most `count` of the choices; an empty list if none is like the name."""
    matches = close_matches(name, choices, count)
    if not matches:
        return []
    return [f"did you mean {' or '.join(map(repr, matches))}?"]


def close_matches(name: object, choices: Iterable[str], count: int = 1) -> list[str]:
    """At most `count` of the choices that are most like the name."""
    return difflib.get_close_matches(str(name), list(choices), n=count, cutoff=0.5)


def is_number(text: str) -> bool:
    """Whether Python reads this text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def number_as_text(text: str) -> str:
    """The message for a number that YAML reads as text, such as 1e-3."""
    return f"'{text}' is read as text, not as a number; write {_with_point(text)}, without quotes"


def _with_point(number: str) -> str:
    mantissa, mark, exponent = number.lower().partition("e")
    if not mark:
        return number
    sign = "" if exponent[:1] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"

"""Problems of a configuration as a reader meets them: file, path inside it, what is wrong, how to fix it."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: the file, the path inside it, what is wrong and how to fix it."""

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.path}" if self.path else self.file
        return f"{where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; the text lists every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        head = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class Collector:
    """Runs readers and gathers their problems, so that all are reported together."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def try_(self, reader: typing.Callable[..., typing.Any], *arguments: typing.Any) -> typing.Any:
        """What the reader gives; None where it has problems."""
        try:
            return reader(*arguments)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None

    def finish(self) -> None:
        """Raise ConfigError where there are problems."""
        if self.problems:
            raise ConfigError(self.problems)


def nearest(name: object, choices: Iterable[str]) -> str:
    """The valid choices and the nearest match, as the tail of a message."""
    options = sorted(choices)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"valid: {', '.join(options) or 'none'}{hint}"


def unknown(file: str, path: Sequence[object], kind: str, name: str, choices: Iterable[str]) -> Problem:
    """The problem of a name that is not among the choices."""
    return Problem(file, dotted(path), f"unknown {kind} '{name}'; {nearest(name, choices)}")


def dotted(path: Sequence[object]) -> str:
    """A path inside a file as a reader writes it: rows[1].parameters.gamma."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def number_as_text(given: str) -> str:
    """The message for a number that YAML reads as text, such as 1e-3."""
    return f"'{given}' is read as text, not as a number; write {_with_point(given)}, without quotes"


def _with_point(given: str) -> str:
    mantissa, mark, exponent = given.lower().partition("e")
    if not mark:
        return given
    sign = "" if exponent[:1] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"


def is_number(text: str) -> bool:
    """Whether Python reads this text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True

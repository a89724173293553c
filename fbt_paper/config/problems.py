"""Problems of a configuration as a reader meets them: file, path inside it, what is wrong, how to fix it."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fbt_core.errors import UserError, nearest


@dataclass(frozen=True)
class Problem:
    """One mistake: the file, the path inside it, what is wrong and how to fix it."""

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.path}" if self.path else self.file
        return f"{where}: {self.message}"


class ConfigError(UserError):
    """The configuration cannot be used; the text is the problem, or a list of all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        # Each once: a setting of a table's base is reported by every cell that takes it.
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__(f"{len(self.problems)} problems in the configuration:")
        lines = [self.what, *(f"  {problem}" for problem in self.problems)]
        self.args = ("\n".join(lines) if len(self.problems) > 1 else str(self.problems[0]),)


class Collector:
    """Runs readers and gathers their problems, so that all are reported together."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def try_(self, reader: typing.Callable[..., typing.Any], *arguments: typing.Any) -> typing.Any:
        """What the reader gives; None if it has problems."""
        try:
            return reader(*arguments)
        # Nothing but ConfigError: an error of the code must show its traceback.
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None

    def finish(self) -> None:
        """Raise ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(self.problems)


def unknown(file: str, path: Sequence[object], kind: str, name: str, choices: Iterable[str]) -> Problem:
    """The problem of a name that is not among the choices."""
    return Problem(file, dotted(path), f"unknown {kind} '{name}'; {nearest(name, choices)}")


def dotted(path: Sequence[object]) -> str:
    """A path inside a file as a reader writes it: rows[1].parameters.gamma."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text

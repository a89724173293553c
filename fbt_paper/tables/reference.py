"""Printed numbers: what a paper says a cell should be, with where it was printed and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fbt_paper.config.load import Config
from fbt_paper.config.records import ReferenceRow

Cells = Mapping[tuple[str, str], ReferenceRow]

STATUS_MARKS = {"primary": "", "secondary": "*", "other": "+", "independent": "^"}
STATUS_MEANING = {
    "primary": "printed in the paper's appendix",
    "secondary": "the main paper's number, as summarised by others",
    "other": "from another paper or repository",
    "independent": "measured by others with a method's released code; no printed number",
}


def printed_numbers(config: Config, table: str) -> Cells:
    """A table's printed numbers by (row, column); a cell without a confirmed number is not there."""
    lines = config.references.get(table, ())
    return {(line.row, line.column): line for line in lines if line.status != "independent"}


def independent_numbers(config: Config, table: str) -> dict[tuple[str, str], list[ReferenceRow]]:
    """What others measured with released code, by (row, column)."""
    numbers: dict[tuple[str, str], list[ReferenceRow]] = {}
    for line in config.references.get(table, ()):
        if line.status == "independent":
            numbers.setdefault((line.row, line.column), []).append(line)
    return numbers


def legend(statuses: Iterable[object]) -> list[str]:
    """What the marks of these statuses mean, each once."""
    used = set(statuses)
    return [
        f"{mark} {STATUS_MEANING[status]}" for status, mark in STATUS_MARKS.items() if mark and status in used
    ]

"""The cost table (Table 6): counted by the paper's rule and truly, beside the paper's digits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_paper.config.load import Config, ConfigError, Problem
from fbt_paper.config.records import CostPair, CostTable
from fbt_paper.tables.reference import Cells, printed_numbers

Counts = Mapping[str, Mapping[str, int]]
UNITS = {"params": ("parameters", 1e6, "M"), "flops": ("macs", 1e9, "G")}
BLOCK_TITLES = {"swin": "Swin", "swinv2": "Swin-V2", "vit": "ViT"}


@dataclass(frozen=True)
class CostLine:
    """One counted part of one pair: parameters in M, MACs in G; `paper` holds what is printed."""

    row: str
    pair: str
    part: str
    label: str
    rule: Mapping[str, float]
    true: Mapping[str, float]
    exact: Mapping[str, Mapping[str, int]]
    paper: Mapping[str, float]

    def differs(self, what: str) -> bool:
        """Whether the paper's digit is another one than the paper's rule gives (two decimals)."""
        return what in self.paper and self.gap(what) != 0

    def gap(self, what: str) -> float | None:
        """By the paper's rule minus printed, both with two decimals; None where nothing is printed."""
        if what not in self.paper:
            return None
        return round(round(self.rule[what], 2) - round(self.paper[what], 2), 2)


@dataclass(frozen=True)
class Costs:
    """The cost table, line by line."""

    key: str
    title: str
    caption: str
    lines: tuple[CostLine, ...]
    footnotes: tuple[str, ...]
    unmatched: tuple[str, ...]


def collect_costs(config: Config, key: str, measured: Path) -> Costs:
    """A cost table from the JSON that `python -m fbt_core.measure.cost` wrote."""
    table = config.tables[key]
    if not isinstance(table, CostTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not a cost table")])
    rows, printed = _read_rows(measured, key), printed_numbers(config, key)
    try:
        lines = tuple(line for row in table.rows for line in _lines(table, row, rows[row.key], printed))
    except (KeyError, TypeError) as error:
        raise ConfigError(
            [_not_counted(measured, key, f"is no count of {key} as it is now ({error})")]
        ) from None
    unmatched = tuple(
        f"{line.pair}, {line.label}" for line in lines if any(line.differs(what) for what in UNITS)
    )
    return Costs(key, table.title, table.caption, lines, table.footnotes if unmatched else (), unmatched)


def _read_rows(measured: Path, key: str) -> Mapping[str, Any]:
    try:
        rows: Mapping[str, Any] = json.loads(measured.read_text())["rows"]
    except FileNotFoundError:
        raise ConfigError([_not_counted(measured, key, "is not counted yet")]) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([_not_counted(measured, key, f"is no count of {key} ({error!r})")]) from None
    return rows


def _not_counted(measured: Path, key: str, what: str) -> Problem:
    hint = f"`python -m fbt_core.measure.cost {key} --out {measured}` counts it (and `snakemake` does)"
    return Problem(str(measured), "", f"{what}; {hint}")


def _lines(table: CostTable, row: CostPair, counted: Mapping[str, Any], printed: Cells) -> Iterator[CostLine]:
    """Student, OFA's branches, and L2G with each block; the paper's digits stand at the block they fit."""

    def line(part: str, title: str, counts: Counts, column: str | None) -> CostLine:
        cells = {what: printed.get((row.key, f"{column}_{what}")) for what in UNITS}
        paper = {what: cell.value for what, cell in cells.items() if cell}
        return _line(row, part, title, counts, paper)

    yield line("student", "Student", counted["student"], "student")
    yield line("ofa_branch", "OFA branch", counted["ofa_branch"], "ofa_branch")
    for block in (table.paper_block, *(b for b in table.blocks if b != table.paper_block)):
        column = "fbt_branch" if block == table.paper_block else None
        title = f"FBT branch ({BLOCK_TITLES[block]} block)"
        yield line(f"fbt_branch_{block}", title, counted["fbt_branch"][block], column)


def _line(row: CostPair, part: str, label: str, counts: Counts, paper: Mapping[str, float]) -> CostLine:
    scaled = {
        rule: {what: counts[rule][name] / unit for what, (name, unit, _) in UNITS.items()}
        for rule in ("paper_rule", "true")
    }
    rule, true = scaled["paper_rule"], scaled["true"]
    return CostLine(row.key, row.label, part, label, rule, true, counts, paper)

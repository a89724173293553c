"""The cost table (Table 6): counted by the paper's rule and truly, beside the paper's digits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_paper.config import Config, ConfigError, Problem
from fbt_paper.reference import printed_numbers
from fbt_paper.schema import CostTable

UNITS = {"params": ("parameters", 1e6, "M"), "flops": ("macs", 1e9, "G")}
BLOCK_TITLES = {"swin": "Swin", "swinv2": "Swin-V2", "vit": "ViT"}


@dataclass(frozen=True)
class CostLine:
    """One counted part of one pair: parameters in M, MACs in G; `paper` is None where nothing is printed."""

    row: str
    pair: str
    part: str
    label: str
    rule: Mapping[str, float]
    true: Mapping[str, float]
    exact: Mapping[str, Mapping[str, int]]
    paper: Mapping[str, float] | None

    def differs(self, what: str) -> bool:
        """Whether the paper's digit is another one than the paper's rule gives (two decimals)."""
        return self.paper is not None and round(self.rule[what], 2) != round(self.paper[what], 2)


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
    """A cost table from the JSON that `python -m fbt_core.cost` wrote."""
    table = config.tables[key]
    if not isinstance(table, CostTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not a cost table")])
    try:
        rows = json.loads(measured.read_text())["rows"]
        lines = tuple(
            line for row in table.rows for line in _lines(config, table, key, row.key, row.label, rows)
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError([Problem(str(measured), "", f"is no count of {key} ({error!r})")]) from None
    unmatched = tuple(
        f"{line.pair}, {line.label}" for line in lines if any(line.differs(what) for what in UNITS)
    )
    return Costs(key, table.title, table.caption, lines, table.footnotes if unmatched else (), unmatched)


def _lines(
    config: Config, table: CostTable, key: str, row: str, label: str, rows: Mapping[str, Any]
) -> Iterator[CostLine]:
    counted = rows[row]
    parts = {"student": ("Student", counted["student"]), "ofa_branch": ("OFA branch", counted["ofa_branch"])}
    printed = printed_numbers(config, key)
    for part, (title, counts) in parts.items():
        paper = {
            what: printed[row, f"{part}_{what}"].value for what in UNITS if (row, f"{part}_{what}") in printed
        }
        yield _line(row, label, part, title, counts, paper)
    for block in (table.paper_block, *(b for b in table.blocks if b != table.paper_block)):
        at_paper = block == table.paper_block
        paper = {what: printed[row, f"fbt_branch_{what}"].value for what in UNITS if at_paper}
        title = f"FBT branch ({BLOCK_TITLES[block]} block)"
        yield _line(row, label, f"fbt_branch_{block}", title, counted["fbt_branch"][block], paper)


def _line(
    row: str,
    pair: str,
    part: str,
    label: str,
    counts: Mapping[str, Mapping[str, int]],
    paper: Mapping[str, float],
) -> CostLine:
    scaled = {
        rule: {what: counts[rule][name] / unit for what, (name, unit, _) in UNITS.items()}
        for rule in ("paper_rule", "true")
    }
    return CostLine(row, pair, part, label, scaled["paper_rule"], scaled["true"], counts, paper or None)

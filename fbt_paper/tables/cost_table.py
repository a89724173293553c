"""The cost table (Table 6): counted by the paper's rule and truly, beside the paper's digits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fbt_paper.config.load import Config, ConfigError, Problem
from fbt_paper.config.records import CostPair, CostTable
from fbt_paper.tables.reference import Cells, printed_numbers

UNITS = {"params": ("parameters", 1e6, "M"), "flops": ("macs", 1e9, "G")}
"""What is counted: its name in the count's file, and its unit."""
BLOCK_TITLES = {"swin": "Swin", "swinv2": "Swin-V2", "vit": "ViT"}


@dataclass(frozen=True)
class CostResults:
    """The cost table; its frame has a row per pair, counted part and quantity (params, flops).

    `rule` and `true` are the counts in M or G, `rule_count` and `true_count` the exact ones, `printed` is the
    paper's digit, `gap` what the paper's rule gives minus that digit, both with two decimals.
    """

    key: str
    title: str
    caption: str
    corner: str
    footnotes: Sequence[str]
    frame: pd.DataFrame

    @property
    def remarks(self) -> list[str]:
        """The footnotes, if a printed digit does not come out."""
        differs = self.frame.gap.notna() & (self.frame.gap != 0)
        return [f"(a) {note}" for note in self.footnotes] if differs.any() else []


def collect_costs(config: Config, key: str, measured: Path) -> CostResults:
    """A cost table from the JSON that `python -m fbt_core.measure.cost` wrote."""
    table = config.tables[key]
    if not isinstance(table, CostTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not a cost table")])
    hint = f"`python -m fbt_core.measure.cost {key} --out {measured}` counts it (and `snakemake` does)"
    printed = printed_numbers(config, key)
    try:
        rows = json.loads(measured.read_text())["rows"]
    except FileNotFoundError:
        raise ConfigError([Problem(str(measured), "", f"is not counted yet; {hint}")]) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"is no count of {key} ({error!r}); {hint}"
        raise ConfigError([Problem(str(measured), "", message)]) from None
    try:
        lines = [line for row in table.rows for line in _lines(table, row, rows[row.key], printed)]
    except (KeyError, TypeError) as error:
        message = f"is no count of {key} as it is now ({error}); {hint}"
        raise ConfigError([Problem(str(measured), "", message)]) from None
    # As float: without any printed digit these columns would hold objects.
    frame = pd.DataFrame(lines).astype({"printed": float, "gap": float})
    return CostResults(key, table.title, table.caption, table.corner, table.footnotes, frame)


def _lines(
    table: CostTable, pair: CostPair, counts: Mapping[str, Any], printed: Cells
) -> Iterator[dict[str, object]]:
    """Student, OFA's branches, and L2G with each block; the paper's digits stand at the block they fit."""
    parts = [("student", "Student", counts["student"], "student")]
    parts += [("ofa_branch", "OFA branch", counts["ofa_branch"], "ofa_branch")]
    for block in (table.paper_block, *(b for b in table.blocks if b != table.paper_block)):
        column = "fbt_branch" if block == table.paper_block else ""
        title = f"FBT branch ({BLOCK_TITLES[block]} block)"
        parts.append((f"fbt_branch_{block}", title, counts["fbt_branch"][block], column))
    for part, label, count, column in parts:
        for quantity, (name, unit, _) in UNITS.items():
            reference = printed.get((pair.key, f"{column}_{quantity}"))
            rule, digit, gap = count["paper_rule"][name], None, None
            if reference:
                digit = reference.value
                # Both as printed, with two decimals: else every digit would differ by what printing cut off.
                gap = round(round(rule / unit, 2) - round(digit, 2), 2)
            yield {
                "row": pair.key,
                "row_label": pair.label,
                "part": part,
                "label": label,
                "quantity": quantity,
                "rule": rule / unit,
                "true": count["true"][name] / unit,
                "rule_count": rule,
                "true_count": count["true"][name],
                "printed": digit,
                "gap": gap,
            }

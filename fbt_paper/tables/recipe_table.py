"""Table 1: the recipes in their two readings beside the printed settings, differences with their source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from fbt_paper.config.load import Config, ConfigError, Problem
from fbt_paper.config.records import RecipeColumn, RecipeLine, RecipeTable

READINGS = {"ofa": "OFA's reading", "as_printed": "as printed"}
NAMES = {"sgd": "SGD", "adamw": "AdamW", "cosine": "Cosine", "none": "-"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class RecipeResults:
    """The table; its frame has a row per setting, column and reading.

    `ours` and `printed` are texts, `source` says where ours is from if the two differ, else it is empty.
    """

    key: str
    title: str
    caption: str
    corner: str
    frame: pd.DataFrame

    @property
    def sources(self) -> list[str]:
        """The sources of all differences, each once; its position gives the letter of its mark."""
        return [source for source in self.frame.source.unique() if source]

    def mark(self, source: str) -> str:
        """The mark of a difference: (a), (b), ...; empty if there is none."""
        return f" ({LETTERS[self.sources.index(source)]})" if source else ""

    @property
    def remarks(self) -> list[str]:
        """What the marks stand for."""
        return [f"{self.mark(source).strip()} {source}" for source in self.sources]


def collect_recipes(config: Config, key: str) -> RecipeResults:
    """A table of recipes from config/recipes.yaml; nothing has to be trained for it."""
    table = config.tables[key]
    if not isinstance(table, RecipeTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not a table of recipes")])
    frame = pd.DataFrame(list(_lines(config, table)))
    return RecipeResults(key, table.title, table.caption, table.corner, frame)


def _lines(config: Config, table: RecipeTable) -> Iterator[dict[str, str]]:
    for row in table.rows:
        printed = dict(zip((column.key for column in table.columns), row.printed, strict=True))
        for reading in READINGS:
            for column in table.columns:
                ours = _value(config, reading, column, row)
                # As printed, but under the other dataset's head: that is how the readings differ.
                others = [
                    c for c in table.columns if c.dataset != column.dataset and c.family == column.family
                ]
                source = config.recipes.sources.get(row.setting, "not stated")
                if reading == "ofa" and any(_equal(ours, printed[other.key]) for other in others):
                    source = table.swapped
                yield {
                    "row": row.key,
                    "row_label": row.label,
                    "reading": reading,
                    "column": column.key,
                    "column_label": column.label,
                    "ours": ours,
                    "printed": printed[column.key],
                    "source": "" if _equal(ours, printed[column.key]) else source,
                }


def _value(config: Config, reading: str, column: RecipeColumn, row: RecipeLine) -> str:
    """A setting as the paper would print it."""
    if row.setting == "image_size":
        return str(config.datasets[column.dataset].image_size)
    recipe = config.recipes.of(reading)[config.datasets[column.dataset].recipes][column.family]
    value: object = recipe
    for name in row.setting.split("."):
        value = getattr(value, name)
    if row.setting == "schedule.name" and value == "step":
        schedule = recipe.schedule
        return f"×{schedule.factor:g} at [{','.join(map(str, schedule.milestones or ()))}]"
    # timm's word for magnitude 9 with deviation 0.5.
    if match := re.fullmatch(r"rand-m(\d+)-mstd([\d.]+).*", str(value)):
        return "/".join(match.groups())
    text = "-" if value is None else str(value)
    return NAMES.get(text.lower(), text)


def _equal(ours: str, printed: str) -> bool:
    """Whether two texts are the same number, or the same text."""
    try:
        return float(ours) == float(printed)
    except ValueError:
        return ours == printed

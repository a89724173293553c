"""What a table, figure or page shows besides the results it reads, as one digest per file.

A rule takes the digest as a param: Snakemake makes the file again when it differs, and trains nothing for it.
Digests hold what the configuration states (titles, captions, labels, printed numbers, score, which runs stand
behind a cell) and the sources of what renders it (tables/, figures/ and page/ with their style files).
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fbt_paper.config.load import Config
from fbt_paper.config.records import RecipeTable
from fbt_paper.plan.runs import Plan, table_label

PACKAGE = Path(__file__).parents[1]


def digest(*values: object) -> str:
    """Sixteen digits that change when any of these values does: records, mappings, sequences, texts."""
    # Sorted: a key that moved within its file shows nothing else.
    text = json.dumps(values, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


@cache
def renderer(*folders: str) -> str:
    """A digest of the sources in these folders of fbt_paper."""
    # The sources themselves: after an update the shown files are those of the new version.
    files = [path for folder in folders for path in sorted((PACKAGE / folder).iterdir()) if path.is_file()]
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


def table_shows(config: Config, plan: Plan, key: str) -> list[object]:
    """Everything that a table shows but its runs' results."""
    # Ids of runs, not their results: results are inputs of the rule, which Snakemake compares by itself.
    cells = [
        (cell.row, cell.column, cell.runs, cell.note, cell.measured_by)
        for cell in plan.tables[key].cells.values()
    ]
    recipes: object = None
    # Table 1 shows the recipes themselves.
    if isinstance(config.tables[key], RecipeTable):
        recipes = (config.recipes, config.datasets)
    return [
        plan.scale,
        table_label(config, plan, key),
        config.main.score,
        config.tables[key],
        config.references.get(key, ()),
        recipes,
        cells,
    ]

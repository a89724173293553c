"""JSON schemas of config/'s files, for editors: `python -m fbt_paper.schemas` writes workflow/schemas/."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from fbt_core.files import write_text
from fbt_core.methods.facts import MethodFacts
from fbt_paper.config.claims import ClaimsFile
from fbt_paper.config.figures import KINDS
from fbt_paper.config.records import (
    AccuracyTable,
    ArchitectureEntry,
    CostTable,
    DatasetEntry,
    MainConfig,
    RecipesFile,
    RecipeTable,
    ScaleEntry,
)
from fbt_paper.config.teachers import ReleasedTeacher

FILES: dict[str, type[BaseModel]] = {
    "config": MainConfig,
    "dataset": DatasetEntry,
    "architecture": ArchitectureEntry,
    "method": MethodFacts,
    "recipes": RecipesFile,
    "scale": ScaleEntry,
    "table": AccuracyTable,
    "cost_table": CostTable,
    "recipe_table": RecipeTable,
    "claims": ClaimsFile,
    "released_teacher": ReleasedTeacher,
}


def all_files() -> dict[str, type[BaseModel]]:
    """The record of each kind of file in config/, figures included."""
    return {**FILES, **{f"{kind}_figure": model for kind, model in KINDS.items()}}


def write_schemas(folder: Path) -> list[Path]:
    """Write the JSON schema of each kind of file, for editors; returns the paths written."""
    paths = []
    for name, model in all_files().items():
        path = folder / f"{name}.schema.json"
        write_text(path, schema_text(model))
        paths.append(path)
    return paths


def schema_text(model: type[BaseModel]) -> str:
    """A model's JSON schema as it is written to workflow/schemas/."""
    return json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for written in write_schemas(Path("workflow/schemas")):
        print(written)

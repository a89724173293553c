"""config/teachers.yaml: released teachers that can be fetched, each with what is stated of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from fbt_core.methods.facts import Text
from fbt_core.spec import Strict
from fbt_paper.config.load import read_mapping, validate
from fbt_paper.config.records import Sha256

Url = Annotated[str, StringConstraints(pattern=r"^https://[^/]+/.+$")]


class ReleasedTeacher(Strict):
    """A checkpoint on the web: where, how large, which bytes, and how good it is said to be."""

    url: Url
    bytes: int = Field(gt=0)
    sha256: Sha256
    top1: float = Field(gt=0, lt=100, description="stated accuracy in %")
    source: Text = Field(description="whose statement that is")


def released_teachers(folder: Path, dataset: str) -> Mapping[str, ReleasedTeacher]:
    """The released teachers of a data set by architecture; empty if there are none. Raises ConfigError."""
    entries = read_mapping(folder / "teachers.yaml").get(dataset) or {}
    return {
        name: validate(ReleasedTeacher, entry, f"config/teachers.yaml: {dataset}.{name}")
        for name, entry in entries.items()
    }

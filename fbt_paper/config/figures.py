"""config/figures/*.yaml: which figures there are and what each shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fbt_core.methods.facts import Text
from fbt_core.spec import Key, Strict
from fbt_paper.config.records import ArchitectureName, DatasetName, TableName

Count = Annotated[int, Field(ge=8)]


class TaxonomyFigure(Strict):
    """Figure 1, from what config/methods.yaml states of each method."""

    kind: Literal["taxonomy"]
    title: Text
    caption: Text


class DrawnNetwork(Strict):
    """One row of the feature figure."""

    architecture: ArchitectureName
    letter: str
    hierarchical: bool = Field(description="whether its grid shrinks from stage to stage")


class FeaturesFigure(Strict):
    """Figure 2: features of stages and of channel groups."""

    kind: Literal["features"]
    title: Text
    caption: Text
    dataset: DatasetName
    images: Annotated[tuple[int, ...], Field(min_length=1, max_length=2, description="test images drawn")]
    measure: Count = Field(description="test images behind the numbers")
    positions: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="enlarge the images until every last stage has so many positions a side, where a network "
        "allows it",
    )
    overlay: bool = Field(default=False, description="lay each map over its image")
    networks: Annotated[tuple[DrawnNetwork, ...], Field(min_length=1)]


class CellName(Strict):
    """A cell of a table."""

    table: TableName
    row: Key
    column: Key


class SimilarityFigure(Strict):
    """CKA of teacher, fused model and student for the runs of some cells."""

    kind: Literal["similarity"]
    title: Text
    caption: Text
    measure: Count = Field(description="test images")
    cells: Annotated[tuple[CellName, ...], Field(min_length=1)]


class CurvesFigure(Strict):
    """Curves of every accuracy table, and ours against the paper."""

    kind: Literal["curves"]
    title: Text
    caption: Text


class SweepsFigure(Strict):
    """A line plot of every accuracy table that has a sweep."""

    kind: Literal["sweeps"]
    title: Text
    caption: Text


FigureConfig = TaxonomyFigure | FeaturesFigure | SimilarityFigure | CurvesFigure | SweepsFigure
KINDS: dict[str, type[BaseModel]] = {
    "taxonomy": TaxonomyFigure,
    "features": FeaturesFigure,
    "similarity": SimilarityFigure,
    "curves": CurvesFigure,
    "sweeps": SweepsFigure,
}

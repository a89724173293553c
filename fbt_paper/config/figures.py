"""config/figures/*.yaml: which figures there are and what each shows; checked like all of config/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fbt_core.errors import nearest
from fbt_core.methods.facts import Text
from fbt_core.spec import Key, Strict
from fbt_paper.config.load import Config, ConfigError, Problem, read_yaml, validate

Count = Annotated[int, Field(ge=8)]


class TaxonomyFigure(Strict):
    """Figure 1, from what config/methods.yaml states of each method."""

    kind: Literal["taxonomy"]
    title: Text
    caption: Text


class DrawnNetwork(Strict):
    """One row of the feature figure."""

    architecture: Key
    letter: str
    hierarchical: bool = Field(description="whether its grid shrinks from stage to stage")


class FeaturesFigure(Strict):
    """Figure 2: features of stages and of channel groups."""

    kind: Literal["features"]
    title: Text
    caption: Text
    dataset: Key
    images: Annotated[tuple[int, ...], Field(min_length=1, max_length=2, description="test images drawn")]
    measure: Count = Field(description="test images behind the numbers")
    networks: Annotated[tuple[DrawnNetwork, ...], Field(min_length=1)]


class CellName(Strict):
    """A cell of a table."""

    table: Key
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


FigureConfig = TaxonomyFigure | FeaturesFigure | SimilarityFigure | CurvesFigure
KINDS: dict[str, type[BaseModel]] = {
    "taxonomy": TaxonomyFigure,
    "features": FeaturesFigure,
    "similarity": SimilarityFigure,
    "curves": CurvesFigure,
}


def load_figures(config: Config) -> dict[str, FigureConfig]:
    """All of config/figures/, by file name; raises ConfigError with every problem found."""
    figures: dict[str, FigureConfig] = {}
    problems: list[Problem] = []
    for path in sorted((config.folder / "figures").glob("*.yaml")):
        try:
            figures[path.stem] = read_figure(path)
        except ConfigError as error:
            problems += error.problems
    problems += [problem for name, figure in figures.items() for problem in _check(config, name, figure)]
    if problems:
        raise ConfigError(problems)
    return figures


def read_figure(path: Path) -> FigureConfig:
    """One figure's file, checked."""
    content, where = read_yaml(path), f"config/figures/{path.name}"
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if kind not in KINDS:
        raise ConfigError([Problem(where, "kind", f"'{kind}' is not valid here; {nearest(kind, KINDS)}")])
    figure: FigureConfig = validate(KINDS[kind], content, where)  # type: ignore[assignment]
    return figure


def _check(config: Config, name: str, figure: FigureConfig) -> Iterator[Problem]:
    """Names in a figure's file that nothing else knows."""
    file = f"config/figures/{name}.yaml"
    if isinstance(figure, FeaturesFigure):
        if figure.dataset not in config.datasets:
            choices = nearest(figure.dataset, config.datasets)
            yield Problem(file, "dataset", f"unknown dataset '{figure.dataset}'; {choices}")
        for index, network in enumerate(figure.networks):
            if network.architecture not in config.architectures:
                choices = nearest(network.architecture, config.architectures)
                message = f"unknown architecture '{network.architecture}'; {choices}"
                yield Problem(file, f"networks[{index}].architecture", message)
    if isinstance(figure, SimilarityFigure):
        for index, cell in enumerate(figure.cells):
            if cell.table not in config.tables:
                message = f"unknown table '{cell.table}'; {nearest(cell.table, config.tables)}"
                yield Problem(file, f"cells[{index}].table", message)

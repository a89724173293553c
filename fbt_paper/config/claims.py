"""config/claims.yaml: statements of the paper that a number can test, one list item each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from fbt_core.errors import nearest
from fbt_core.methods.facts import Text
from fbt_core.spec import Key, Strict
from fbt_paper.config.load import COST_COLUMNS, Config, ConfigError, Problem, read_mapping, validate
from fbt_paper.config.records import AccuracyTable, FigureName

FILE = "config/claims.yaml"
CellPath = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*/([a-z][a-z0-9_]*|\*)/([a-z][a-z0-9_]*|\*)$")
]
"""table/row/column; a `*` stands for all rows or all columns of the table: the claim is about each."""


class Claim(Strict):
    """What all claims state: a key, where the paper says it, and its words in short."""

    key: Key
    where: Text = Field(description="e.g. appendix, Table 2")
    says: Text = Field(description="the paper's statement in short")
    note: Text | None = Field(default=None, description="what a reader should know beside the verdict")
    priority: int = Field(
        default=0, description="jobs of runs that claims with a higher one need start first"
    )


class Above(Claim):
    """One cell is above another; with a `*` in both, on every pair (or on average)."""

    # The kinds differ in their first field (KINDS): a claim needs no key `kind`.
    better: CellPath
    than: CellPath
    by_at_least: float = Field(default=0.0, ge=0, description="percentage points")
    on_average: bool = Field(default=False, description="the mean over the pairs, instead of each pair")


class Ordered(Claim):
    """Several cells in a stated order, each above the next."""

    best_first: Annotated[tuple[CellPath, ...], Field(min_length=2)]


class Same(Claim):
    """Two cells are about the same: their difference lies within a stated band."""

    same: Annotated[tuple[CellPath, ...], Field(min_length=2, max_length=2)]
    within: float = Field(gt=0, description="percentage points to either side")
    because: Text = Field(description="why the band is as wide as it is")


class Varies(Claim):
    """The sign of a difference is not the same on all pairs: it rises on one and falls on another."""

    rises_and_falls: Annotated[tuple[CellPath, ...], Field(min_length=2, max_length=2)]


class Ratio(Claim):
    """A counted quantity is about a stated share of another, on every row of a cost table."""

    ratio: CellPath
    of: CellPath
    between: tuple[float, float]


class Observation(Claim):
    """A statement that a feature figure measures and judges by itself."""

    figure: FigureName
    observation: Literal["locality", "stage_similarity", "group_similarity"]


# The tags stand in <>: check.py drops from a location what is not in the file, and `better` is in it.
KINDS: dict[str, type[Claim]] = {
    "better": Above,
    "best_first": Ordered,
    "same": Same,
    "rises_and_falls": Varies,
    "ratio": Ratio,
    "observation": Observation,
}


def _kind(value: Any) -> str:
    """The kind of a claim: the field that only this kind has."""
    if isinstance(value, Claim):
        # Pydantic asks for the tag of a finished record as well, when it writes one out.
        return next(f"<{name}>" for name, kind in KINDS.items() if isinstance(value, kind))
    return next((f"<{name}>" for name in KINDS if isinstance(value, Mapping) and name in value), "<better>")


AnyClaim = Annotated[
    Annotated[Above, Tag("<better>")]
    | Annotated[Ordered, Tag("<best_first>")]
    | Annotated[Same, Tag("<same>")]
    | Annotated[Varies, Tag("<rises_and_falls>")]
    | Annotated[Ratio, Tag("<ratio>")]
    | Annotated[Observation, Tag("<observation>")],
    Discriminator(_kind),
]


class ClaimsFile(Strict):
    """config/claims.yaml."""

    claims: tuple[AnyClaim, ...]


def load_claims(config: Config) -> tuple[Claim, ...]:
    """All claims, checked against the tables; raises ConfigError with every problem found."""
    path: Path = config.folder / "claims.yaml"
    if not path.exists():
        return ()
    claims = validate(ClaimsFile, read_mapping(path), FILE, names={"figure": list(config.figures)}).claims
    # After the types, not in their pass: rows and columns are known only with the table that a path names.
    problems = [problem for index, claim in enumerate(claims) for problem in _problems(config, index, claim)]
    keys = [claim.key for claim in claims]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            message = f"the key '{key}' is used twice; every claim needs one of its own"
            problems.append(Problem(FILE, f"claims[{index}].key", message))
    if problems:
        raise ConfigError(problems)
    return claims


def named_cells(claim: Claim) -> Mapping[str, str]:
    """The cells that a claim names, by the path inside its item."""
    # By path inside the item, so that a problem names the field that states the cell.
    match claim:
        case Above():
            return {"better": claim.better, "than": claim.than}
        case Ordered():
            return {f"best_first[{i}]": cell for i, cell in enumerate(claim.best_first)}
        case Same():
            return {f"same[{i}]": cell for i, cell in enumerate(claim.same)}
        case Varies():
            return {f"rises_and_falls[{i}]": cell for i, cell in enumerate(claim.rises_and_falls)}
        case Ratio():
            return {"ratio": claim.ratio, "of": claim.of}
    return {}


def pairs(config: Config, cells: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The cells with their `*` filled in: name of the pair -> one cell path for each of the given ones.

    Without a `*` there is one entry, with an empty name.
    """
    if not any("*" in cell for cell in cells):
        return {"": cells}
    # The first cell decides for all: `_problems` has refused stars that stand at unlike parts.
    table, row, _ = cells[0].split("/")
    entry = config.tables[table]
    names = [line.key for line in entry.rows] if row == "*" else _columns(entry)
    return {name: tuple(cell.replace("*", name) for cell in cells) for name in names}


def cell_paths(config: Config, claim: Claim) -> list[str]:
    """All cells that a claim is about, with its `*` filled in."""
    return [path for cells in pairs(config, tuple(named_cells(claim).values())).values() for path in cells]


def pair_label(config: Config, cell: str, name: str) -> str:
    """The label of a pair's row or column, which a reader knows, in place of its key; empty stays empty."""
    entry = config.tables[cell.split("/")[0]]
    lines = [*entry.rows, *(entry.columns if isinstance(entry, AccuracyTable) else ())]
    return next((line.label for line in lines if line.key == name), name)


def _problems(config: Config, index: int, claim: Claim) -> Iterator[Problem]:
    """Names in a claim that no table has, and stars that do not fit together."""
    cells = named_cells(claim)
    for path, cell in cells.items():
        where = f"claims[{index}].{path}"
        table, row, column = cell.split("/")
        if table not in config.tables:
            yield Problem(FILE, where, f"unknown table '{table}'; {nearest(table, config.tables)}")
            continue
        entry = config.tables[table]
        is_cost = isinstance(claim, Ratio)
        if is_cost == isinstance(entry, AccuracyTable):
            kind = "accuracies"
            if is_cost:
                kind = "counts; a ratio needs a table of kind cost"
            yield Problem(FILE, where, f"table '{table}' shows no {kind}")
            continue
        rows, columns = [line.key for line in entry.rows], _columns(entry)
        if row != "*" and row not in rows:
            yield Problem(FILE, where, f"{table} has no row '{row}'; {nearest(row, rows)}")
        if column != "*" and column not in columns:
            yield Problem(FILE, where, f"{table} has no column '{column}'; {nearest(column, columns)}")
    # Unlike stars give no pairs: `a/*/x` and `a/y/*` have no common name to fill in.
    stars = {tuple(part == "*" for part in cell.split("/")) for cell in cells.values()}
    if len(stars) > 1 or any(sum(star) > 1 for star in stars):
        message = "a `*` stands for all rows or for all columns, and then in every cell of the claim"
        yield Problem(FILE, f"claims[{index}]", message)
    elif stars == {(False, False, False)} and isinstance(claim, Varies):
        yield Problem(FILE, f"claims[{index}].rises_and_falls", "needs a `*`: one pair cannot do both")


def _columns(entry: Any) -> list[str]:
    """Keys of a table's columns; a cost table has the counted quantities."""
    if isinstance(entry, AccuracyTable):
        return [line.key for line in entry.columns]
    return list(COST_COLUMNS)

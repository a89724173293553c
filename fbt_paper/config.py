"""Read config/: every file is checked, every mistake reported with its file and the path inside it."""

from __future__ import annotations

import csv
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fbt_core.spec import NetworkSpec, RecipeEntry
from fbt_paper.schema import (
    AccuracyTable,
    ArchitectureEntry,
    CostTable,
    DatasetEntry,
    MainConfig,
    MethodEntry,
    ReferenceRow,
    SmokeConfig,
)

M = TypeVar("M", bound=BaseModel)
Table = AccuracyTable | CostTable
CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "config"
RECIPE_ROLES = ("cnn", "msa", "mlp", "teacher")


@dataclass(frozen=True)
class Problem:
    """One mistake: the file, the path inside it, what is wrong and how to mend it."""

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.path}" if self.path else self.file
        return f"{where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; the text lists every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        head = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


@dataclass(frozen=True)
class Config:
    """All of config/, checked. `recipes` is keyed by set, dataset and role (a family, or teacher)."""

    folder: Path
    main: MainConfig
    datasets: Mapping[str, DatasetEntry]
    architectures: Mapping[str, ArchitectureEntry]
    methods: Mapping[str, MethodEntry]
    recipes: Mapping[str, Mapping[str, Mapping[str, RecipeEntry]]]
    recipe_sources: Mapping[str, str]
    smoke: SmokeConfig
    tables: Mapping[str, Table]
    references: Mapping[str, tuple[ReferenceRow, ...]] = field(default_factory=dict)


def nearest(name: object, choices: Iterable[str]) -> str:
    """The valid choices and the nearest match, as the tail of a message."""
    options = sorted(choices)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"valid: {', '.join(options) or 'none'}{hint}"


def dotted(path: Sequence[object]) -> str:
    """A path inside a file as a reader writes it: rows[1].parameters.gamma."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


# ---------------------------------------------------------------- YAML


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' is given twice; keep one", problem_mark=key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> Any:
    """A YAML file's content; raises ConfigError when it is missing, broken or has a doubled key."""
    try:
        return yaml.load(path.read_text(), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError([Problem(_shown(path), "", "the file is missing")]) from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError([Problem(_shown(path), line, error.problem or str(error))]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(_shown(path), "", f"is not YAML: {error}")]) from None


def _shown(path: Path) -> str:
    """A config file's name as a reader knows it: from config/ on."""
    parts = path.parts
    at = max((i for i, part in enumerate(parts) if part == "config"), default=len(parts) - 1)
    return "/".join(parts[at:])


# ---------------------------------------------------------------- validation


def validate(model: type[M], data: Any, file: str, prefix: Sequence[object] = ()) -> M:
    """The record, or a ConfigError with every problem of this piece of the file."""
    try:
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = _problems(error.errors(include_url=False), model, data, file, prefix)
        raise ConfigError(problems) from None


def _problems(
    errors: Sequence[ErrorDetails], model: type[BaseModel], data: Any, file: str, prefix: Sequence[object]
) -> list[Problem]:
    found: dict[tuple[object, ...], Problem] = {}
    for error in errors:
        path = _real_path(error, data)
        found.setdefault(path, Problem(file, dotted([*prefix, *path]), _message(error, model, path)))
    causes = {path[:-1] for path in found}  # a list of wrong items is not also told to be too short
    return [problem for path, problem in found.items() if path not in causes or not path]


def _real_path(error: ErrorDetails, data: Any) -> tuple[object, ...]:
    """The error's location without the names pydantic adds for the members of a union."""
    path: list[object] = []
    for part in error["loc"]:
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        elif error["type"] == "missing" and part == error["loc"][-1]:
            path.append(part)
    return tuple(path)


def _message(error: ErrorDetails, model: type[BaseModel], path: Sequence[object]) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(path[-1], _fields_at(model, path[:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        choices = [part.strip(" '") for part in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"'{given}' is not valid here; {nearest(given, choices)}"
    if isinstance(given, str) and kind in {"float_type", "int_type"} and is_number(given):
        return number_as_text(given)
    if kind == "string_pattern_mismatch":
        return f"'{given}' has a form that is not allowed here ({error['ctx']['pattern']})"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (given: {given!r})"


def number_as_text(given: str) -> str:
    """The message for a number that YAML reads as text, such as 1e-3."""
    return f"'{given}' is read as text, not as a number; write {_with_point(given)}, without quotes"


def _with_point(given: str) -> str:
    mantissa, mark, exponent = given.lower().partition("e")
    if not mark:
        return given
    sign = "" if exponent[:1] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"


def is_number(text: str) -> bool:
    """Whether Python reads this text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fields_at(model: Any, path: Sequence[object]) -> list[str]:
    """Names of the fields that the record at this path has."""
    for part in path:
        model = _step(model, part)
    record = _record(model)
    return list(record.model_fields) if record else []


def _step(annotation: Any, part: object) -> Any:
    record = _record(annotation)
    if record and part in record.model_fields:
        return record.model_fields[str(part)].annotation
    arguments = [a for a in _members(annotation) if typing.get_origin(a) in (tuple, dict, list)]
    inner = typing.get_args(arguments[0]) if arguments else ()
    if not inner:
        return None
    return inner[1] if typing.get_origin(arguments[0]) is dict else inner[0]


def _record(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _members(annotation: Any) -> list[Any]:
    """The members of a union, unwrapped from Annotated; a plain annotation is its only member."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


# ---------------------------------------------------------------- the files


class _Collector:
    """Runs readers and gathers their problems, so that all are reported together."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def try_(self, reader: typing.Callable[..., Any], *arguments: Any) -> Any:
        try:
            return reader(*arguments)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None

    def finish(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)


def load(folder: Path | str = CONFIG_FOLDER, overrides: Mapping[str, Any] | None = None) -> Config:
    """All of config/, checked; `overrides` replaces keys of config.yaml (Snakemake's --config)."""
    folder, collect = Path(folder), _Collector()
    parts = {
        "main": collect.try_(_read_main, folder / "config.yaml", overrides or {}),
        "datasets": collect.try_(_read_entries, folder / "datasets.yaml", DatasetEntry),
        "architectures": collect.try_(_read_entries, folder / "architectures.yaml", ArchitectureEntry),
        "methods": collect.try_(_read_entries, folder / "methods.yaml", MethodEntry),
        "recipes": collect.try_(_read_recipes, folder / "recipes.yaml"),
        "recipe_sources": collect.try_(_read_recipe_sources, folder / "recipes.yaml"),
        "smoke": collect.try_(read_smoke, folder / "smoke.yaml"),
        "tables": collect.try_(_read_tables, folder / "tables"),
        "references": collect.try_(_read_references, folder / "tables"),
    }
    collect.finish()
    config = Config(folder=folder, **parts)
    problems = _cross_check(config)
    if problems:
        raise ConfigError(problems)
    return config


def _read_main(path: Path, overrides: Mapping[str, Any]) -> MainConfig:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError([Problem(_shown(path), "", "must be keys with values")])
    return validate(MainConfig, {**content, **overrides}, _shown(path))


def _read_entries(path: Path, model: type[M]) -> dict[str, M]:
    content, collect = read_yaml(path), _Collector()
    if not isinstance(content, dict):
        raise ConfigError([Problem(_shown(path), "", "must be named entries")])
    entries = {}
    for key, entry in content.items():
        collect.try_(_check_key, key, path)
        entries[key] = collect.try_(validate, model, entry, _shown(path), [key])
    collect.finish()
    return entries


def _check_key(key: object, path: Path) -> None:
    if not (isinstance(key, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,39}", key)):
        message = "a name is made of small letters, digits and _ and starts with a letter"
        raise ConfigError([Problem(_shown(path), str(key), message)])


def read_smoke(path: Path) -> SmokeConfig:
    """config/smoke.yaml, checked."""
    return validate(SmokeConfig, read_yaml(path), _shown(path))


def _read_recipes(path: Path) -> dict[str, dict[str, dict[str, RecipeEntry]]]:
    """recipes.yaml: set -> dataset -> family or `teacher` -> recipe."""
    content, collect = read_yaml(path), _Collector()
    recipes: dict[str, dict[str, dict[str, RecipeEntry]]] = {}
    for name, datasets in content.items():
        if name == "sources":
            continue
        for dataset, roles in datasets.items():
            for role, entry in roles.items():
                where = [name, dataset, role]
                if role not in RECIPE_ROLES:
                    collect.problems.append(
                        Problem(_shown(path), dotted(where), f"unknown key; {nearest(role, RECIPE_ROLES)}")
                    )
                    continue
                recipe = collect.try_(validate, RecipeEntry, entry, _shown(path), where)
                recipes.setdefault(name, {}).setdefault(dataset, {})[role] = recipe
    collect.finish()
    return recipes


def _read_recipe_sources(path: Path) -> dict[str, str]:
    """recipes.yaml, `sources`: setting (or `teacher`) -> where its numbers come from."""
    sources: dict[str, str] = read_yaml(path).get("sources", {})
    wrong = [name for name, text in sources.items() if not isinstance(text, str)]
    if wrong:
        raise ConfigError(Problem(_shown(path), f"sources.{name}", "must be text") for name in wrong)
    return sources


def _read_tables(folder: Path) -> dict[str, Table]:
    collect, tables = _Collector(), {}
    for path in sorted(folder.glob("*.yaml")):
        collect.try_(_check_key, path.stem, path)
        tables[path.stem] = collect.try_(read_table, path)
    collect.finish()
    return tables


def read_table(path: Path) -> Table:
    """One table's file, checked."""
    content = read_yaml(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    kinds: dict[Any, type[Table]] = {"accuracy": AccuracyTable, "cost": CostTable}
    if kind not in kinds:
        raise ConfigError(
            [Problem(_shown(path), "kind", f"'{kind}' is not valid here; {nearest(kind, kinds)}")]
        )
    return validate(kinds[kind], content, _shown(path))


def _read_references(folder: Path) -> dict[str, tuple[ReferenceRow, ...]]:
    collect = _Collector()
    found = {
        path.name.removesuffix(".reference.csv"): collect.try_(read_reference, path)
        for path in sorted(folder.glob("*.reference.csv"))
    }
    collect.finish()
    return found


def read_reference(path: Path) -> tuple[ReferenceRow, ...]:
    """The printed numbers of one table, with their source and status."""
    collect, rows = _Collector(), []
    with path.open(newline="") as handle:
        for number, line in enumerate(csv.DictReader(handle), start=2):
            rows.append(collect.try_(_reference_row, line, path, number))
    collect.finish()
    return tuple(rows)


def _reference_row(line: dict[str, str], path: Path, number: int) -> ReferenceRow:
    data: dict[str, Any] = {key: value for key, value in line.items() if key is not None}
    if is_number(data.get("value") or ""):
        data["value"] = float(data["value"])
    return validate(ReferenceRow, data, _shown(path), [f"line {number}"])


# ---------------------------------------------------------------- names that must exist elsewhere


def _cross_check(config: Config) -> list[Problem]:
    problems = [*_check_smoke(config), *_check_main(config), *_check_datasets(config)]
    for name, rows in config.references.items():
        problems += _check_reference(config, name, rows)
    for name, table in config.tables.items():
        problems += _check_lines(name, table)
    return problems


def _unknown(file: str, path: Sequence[object], kind: str, name: str, choices: Iterable[str]) -> Problem:
    return Problem(file, dotted(path), f"unknown {kind} '{name}'; {nearest(name, choices)}")


def _check_smoke(config: Config) -> list[Problem]:
    file, problems = "config/smoke.yaml", []
    for name, stand_in in config.smoke.datasets.items():
        for key in (name, stand_in):
            if key not in config.datasets:
                problems.append(_unknown(file, ["datasets", name], "dataset", key, config.datasets))
    for name in config.smoke.architectures:
        if name not in config.architectures:
            problems.append(
                _unknown(file, ["architectures", name], "architecture", name, config.architectures)
            )
    for family in ("cnn", "msa", "mlp"):
        if family not in config.smoke.recipes:
            problems.append(Problem(file, f"recipes.{family}", "is missing"))
    return problems


def _check_main(config: Config) -> list[Problem]:
    file, problems = "config/config.yaml", []
    for name in config.main.data_roots:
        if name not in config.datasets:
            problems.append(_unknown(file, ["data_roots", name], "dataset", name, config.datasets))
    for name, files in config.main.teacher_files.items():
        if name not in config.datasets:
            problems.append(_unknown(file, ["teacher_files", name], "dataset", name, config.datasets))
        for key in files:
            if key not in config.architectures:
                path = ["teacher_files", name, key]
                problems.append(_unknown(file, path, "architecture", key, config.architectures))
    return problems


def _check_datasets(config: Config) -> list[Problem]:
    known = config.recipes.get(config.main.recipes, {})
    return [
        _unknown("config/datasets.yaml", [name, "recipes"], "recipes", entry.recipes, known)
        for name, entry in config.datasets.items()
        if entry.recipes not in known
    ]


def _check_lines(name: str, table: Table) -> list[Problem]:
    """Keys of rows (and of columns) are unique within their table."""
    problems = []
    groups = (
        {"rows": table.rows, "columns": table.columns} if table.kind == "accuracy" else {"rows": table.rows}
    )
    for group, lines in groups.items():
        keys = [line.key for line in lines]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                path = dotted([group, index, "key"])
                problems.append(
                    Problem(f"config/tables/{name}.yaml", path, f"the key '{key}' is given twice")
                )
    return problems


COST_COLUMNS = tuple(
    f"{part}_{what}" for part in ("student", "ofa_branch", "fbt_branch") for what in ("params", "flops")
)


def line_keys(table: Table) -> tuple[list[str], list[str]]:
    """Keys that a printed number may name as its row and as its column."""
    rows = [row.key for row in table.rows]
    if table.kind == "cost":
        return rows, list(COST_COLUMNS)
    columns = [column.key for column in table.columns]
    if table.gain:
        (rows if table.gain.along == "rows" else columns).append(table.gain.key)
    return rows, columns


def _check_reference(config: Config, name: str, lines: Sequence[ReferenceRow]) -> list[Problem]:
    file, problems = f"config/tables/{name}.reference.csv", []
    if name not in config.tables:
        return [Problem(file, "", f"there is no table '{name}'; {nearest(name, config.tables)}")]
    rows, columns = line_keys(config.tables[name])
    seen = set()
    for number, line in enumerate(lines, start=2):
        if line.row not in rows:
            problems.append(_unknown(file, [f"line {number}"], "row", line.row, rows))
        if line.column not in columns:
            problems.append(_unknown(file, [f"line {number}"], "column", line.column, columns))
        if (line.row, line.column) in seen:
            problems.append(Problem(file, f"line {number}", f"{line.row}, {line.column} is given twice"))
        seen.add((line.row, line.column))
    return problems


def tiny_network(key: str, folder: Path = CONFIG_FOLDER) -> NetworkSpec:
    """The tiny twin of an architecture, untrained; used by the smoke scale and by the engine's tests."""
    smoke = read_smoke(folder / "smoke.yaml")
    entries: dict[str, ArchitectureEntry] = _read_entries(folder / "architectures.yaml", ArchitectureEntry)
    if key not in smoke.architectures:
        raise ConfigError(
            [_unknown("config/smoke.yaml", ["architectures"], "architecture", key, smoke.architectures)]
        )
    twin = smoke.architectures[key]
    return NetworkSpec(
        architecture=key,
        family=entries[key].family,
        create=twin.create,
        options=twin.options,
        weights="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )

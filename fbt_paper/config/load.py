"""Read config/: every file is checked, every mistake reported with its file and the path inside it."""

from __future__ import annotations

import csv
import io
import json
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fbt_core.errors import is_number, nearest, number_as_text
from fbt_core.methods.facts import MethodFacts
from fbt_core.spec import NetworkSpec
from fbt_paper.config.names import check_names
from fbt_paper.config.problems import (
    Collector,
    ConfigError,
    Problem,
    dotted,
    unknown,
)
from fbt_paper.config.records import (
    AccuracyTable,
    ArchitectureEntry,
    CostTable,
    DatasetEntry,
    MainConfig,
    RecipesFile,
    ReferenceRow,
    SmokeConfig,
    Table,
)

__all__ = [
    "CONFIG_FOLDER",
    "Config",
    "ConfigError",
    "Problem",
    "load",
    "read_yaml",
    "tiny_network",
    "validate",
]

M = TypeVar("M", bound=BaseModel)
CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "config"


@dataclass(frozen=True)
class Config:
    """All of config/, checked."""

    folder: Path
    main: MainConfig
    datasets: Mapping[str, DatasetEntry]
    architectures: Mapping[str, ArchitectureEntry]
    methods: Mapping[str, MethodFacts]
    recipes: RecipesFile
    smoke: SmokeConfig
    tables: Mapping[str, Table]
    references: Mapping[str, tuple[ReferenceRow, ...]] = field(default_factory=dict)


# ---------------------------------------------------------------- YAML


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            problem = _key_problem(key_node, seen)
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _key_problem(node: yaml.Node, seen: Collection[str]) -> str | None:
    """What is wrong with a key: it is no text (a list, a number, `yes`), or it was there before."""
    if node.tag == "tag:yaml.org,2002:merge":
        return None
    if node.tag != "tag:yaml.org,2002:str":
        given = f" (given: {node.value})" if isinstance(node, yaml.ScalarNode) else ""
        return f"a key must be text{given}; put quotes around a word that YAML reads as something else"
    return f"the key '{node.value}' is given twice; keep one" if node.value in seen else None


def read_yaml(path: Path) -> Any:
    """A YAML file's content; raises ConfigError when it is missing, broken or has a doubled key."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError([Problem(_shown(path), "", "the file is missing")]) from None
    except OSError as error:
        raise ConfigError([Problem(_shown(path), "", f"cannot be read: {error.strerror}")]) from None
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
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (given: {given!r})"


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

ENTRIES: dict[str, type[BaseModel]] = {
    "datasets": DatasetEntry,
    "architectures": ArchitectureEntry,
    "methods": MethodFacts,
}


def load(folder: Path | str = CONFIG_FOLDER, overrides: Mapping[str, Any] | None = None) -> Config:
    """All of config/, checked; `overrides` replaces keys of config.yaml (Snakemake's --config).

    A file with a mistake does not hide those of the others, nor a wrong key the unknown names beside it.
    """
    folder, collect = Path(folder), Collector()
    content = _read_content(folder, overrides or {}, collect)
    parts: dict[str, Any] = {
        "main": _sound(collect, MainConfig, content["config"], "config/config.yaml"),
        **{name: _entries(collect, model, content[name], name) for name, model in ENTRIES.items()},
        "recipes": _sound(collect, RecipesFile, content["recipes"], "config/recipes.yaml"),
        "smoke": _sound(collect, SmokeConfig, content["smoke"], "config/smoke.yaml"),
        "tables": _tables(collect, content["tables"]),
        "references": _read_references(folder / "tables", collect),
    }
    collect.problems += check_names(content, parts["methods"], parts["references"])
    collect.finish()
    return Config(folder=folder, **parts)


def _read_content(folder: Path, overrides: Mapping[str, Any], collect: Collector) -> dict[str, Any]:
    """What the YAML files hold, by the file's name; None for one that cannot be read."""
    names = ("config", *ENTRIES, "recipes", "smoke")
    content = {name: collect.try_(read_mapping, folder / f"{name}.yaml") for name in names}
    if content["config"] is not None:
        content["config"] = {**content["config"], **overrides}
    tables = sorted((folder / "tables").glob("*.yaml"))
    for path in tables:
        collect.try_(_check_key, path.stem, _shown(path))
    return {**content, "tables": {path.stem: collect.try_(read_mapping, path) for path in tables}}


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of keys with values."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError([Problem(_shown(path), "", "must be keys with values")])
    return content


def _sound(collect: Collector, model: type[M], content: Any, file: str) -> M | None:
    """The record of a file that could be read; None, and its problems collected, where it is not sound."""
    record: M | None = None if content is None else collect.try_(validate, model, content, file)
    return record


def _entries(collect: Collector, model: type[M], content: Any, name: str) -> dict[str, M]:
    """The sound entries of a file of named entries."""
    file, found = f"config/{name}.yaml", {}
    for key, entry in (content or {}).items():
        collect.try_(_check_key, key, file)
        found[key] = collect.try_(validate, model, entry, file, [key])
    return {key: entry for key, entry in found.items() if entry is not None}


def _check_key(key: str, file: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", key):
        message = "a name is made of small letters, digits and _ and starts with a letter"
        raise ConfigError([Problem(file, key, message)])


def _tables(collect: Collector, content: Mapping[str, Any]) -> dict[str, Table]:
    found = {key: collect.try_(_table, key, table) for key, table in content.items() if table is not None}
    return {key: table for key, table in found.items() if table is not None}


def _table(key: str, content: Mapping[str, Any]) -> Table:
    kind, file = content.get("kind"), f"config/tables/{key}.yaml"
    kinds: dict[Any, type[Table]] = {"accuracy": AccuracyTable, "cost": CostTable}
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError([Problem(file, "kind", f"'{kind}' is not valid here; {nearest(kind, kinds)}")])
    return validate(kinds[kind], content, file)


# ---------------------------------------------------------------- printed numbers


def _read_references(folder: Path, collect: Collector) -> dict[str, tuple[ReferenceRow, ...]]:
    paths = sorted(folder.glob("*.reference.csv"))
    found = {path.name.removesuffix(".reference.csv"): collect.try_(read_reference, path) for path in paths}
    return {name: rows for name, rows in found.items() if rows is not None}


def read_reference(path: Path) -> tuple[ReferenceRow, ...]:
    """The printed numbers of one table, with their source and status."""
    collect, rows = Collector(), []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        for line in reader:
            rows.append(collect.try_(_reference_row, line, path, reader.line_num))
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(_shown(path), "", f"is not UTF-8 text: {error}")]) from None
    except csv.Error as error:
        raise ConfigError([Problem(_shown(path), "", f"is not CSV: {error}")]) from None
    collect.finish()
    return tuple(rows)


def _reference_row(line: dict[Any, Any], path: Path, number: int) -> ReferenceRow:
    if None in line:
        count = len(line) - 1
        message = f"has more values than the first line has names ({count}); quote a text that holds a comma"
        raise ConfigError([Problem(_shown(path), f"line {number}", message)])
    data: dict[str, Any] = {key: value for key, value in line.items() if value is not None}
    if is_number(data.get("value", "")):
        data["value"] = float(data["value"])
    return validate(ReferenceRow, data, _shown(path), [f"line {number}"])


# ---------------------------------------------------------------- the engine's tests


def tiny_network(key: str, folder: Path = CONFIG_FOLDER) -> NetworkSpec:
    """The tiny twin of an architecture, untrained; used by the smoke scale and by the engine's tests."""
    smoke = validate(SmokeConfig, read_mapping(folder / "smoke.yaml"), "config/smoke.yaml")
    entries = read_mapping(folder / "architectures.yaml")
    if key not in smoke.architectures:
        raise ConfigError(
            [unknown("config/smoke.yaml", ["architectures"], "architecture", key, smoke.architectures)]
        )
    entry = validate(ArchitectureEntry, entries.get(key), "config/architectures.yaml", [key])
    twin = smoke.architectures[key]
    return NetworkSpec(
        architecture=key,
        family=entry.family,
        create=twin.create,
        options=twin.options,
        weights="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )

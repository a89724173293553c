"""A piece of a file against its record: pydantic finds every mistake in one pass, here each gets words."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fbt_core.errors import is_number, nearest, number_as_text
from fbt_paper.config.problems import ConfigError, Problem, dotted

M = TypeVar("M", bound=BaseModel)
Path = tuple[object, ...]
EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
}


def validate(
    model: type[M],
    data: Any,
    file: str,
    prefix: Sequence[object] = (),
    names: Mapping[str, Any] | None = None,
) -> M:
    """The record, or a ConfigError with every problem of this piece of the file.

    `names` holds what the types of records.py look names up in; without them only the form is checked.
    """
    try:
        # As JSON: the records are strict, and strict pydantic takes a list for a tuple only from JSON.
        # YAML has dates, JSON has none: as text they reach the type of their key like any other wrong value.
        return model.model_validate_json(json.dumps(data, default=str), context=names)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # Without pydantic's addresses: its pages explain its types, not our files.
        problems = [
            Problem(file, dotted([*prefix, *path]), message)
            for path, message in _messages(errors, model, data)
        ]
        raise ConfigError(problems) from None


def _messages(
    errors: Sequence[ErrorDetails], model: type[BaseModel], data: Any
) -> Iterator[tuple[Path, str]]:
    """Each path with what is wrong there; the members of a union give one message together."""
    # Pydantic reports one error for each member of a union: grouped, a wrong value is one problem.
    groups: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_real_path(error, data), []).append(error)
    for path, group in groups.items():
        kinds = {error["type"] for error in group}
        inner = any(other != path and other[: len(path)] == path for other in groups)
        if inner and not kinds & {"value_error", "fault"}:
            continue  # a list of wrong items is not also reported to be too short
        if len(kinds) > 1 and kinds <= set(EXPECTED):
            expected = "a number, a text, true, false or a list of these"
            if "finite_number" in kinds:
                expected = "a finite number"
            yield path, f"must be {expected} ({_given(group[0])})"
        else:
            yield path, _message(group[0], model, path)


def _real_path(error: ErrorDetails, data: Any) -> Path:
    """The error's location without the names pydantic adds for the members of a union."""
    path: list[object] = []
    for part in error["loc"]:
        # Pydantic's names of a union's members stand in the location as well, but not in the file.
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        # A missing key is not in the file either, so it is known by its error alone.
        elif error["type"] == "missing" and part == error["loc"][-1]:
            path.append(part)
    return tuple(path)


def _message(error: ErrorDetails, model: type[BaseModel], path: Path) -> str:
    kind, value = error["type"], error.get("input")
    # Checks of our own have written a message for readers; pydantic's words would only frame it.
    if kind == "fault":
        return error["msg"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(path[-1], _keys_at(model, path[:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        # Pydantic gives the choices as one sentence only: 'a', 'b' or 'c'.
        choices = [part.strip(" '") for part in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"'{value}' is not valid here; {nearest(value, choices)}"
    # YAML 1.1 reads 1e-3 as text, because it asks for a point in a number with an exponent.
    if isinstance(value, str) and kind in {"float_type", "int_type"} and is_number(value):
        return number_as_text(value)
    if kind == "string_pattern_mismatch":
        return f"'{value}' has a form that is not allowed here ({error['ctx']['pattern']})"
    # YAML 1.1 reads yes, no, on and off as truth values, and 1.10 as a number.
    if kind == "string_type" and isinstance(value, bool | int | float):
        what = "true or false" if isinstance(value, bool) else "a number"
        return f"must be a text, but YAML reads this as {what} ({_given(error)}); put quotes around it"
    if kind in EXPECTED:
        return f"must be {EXPECTED[kind]} ({_given(error)})"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} ({_given(error)})"


def _given(error: ErrorDetails) -> str:
    """The value that was given, in short: a table of many rows is not repeated in its message."""
    value = error.get("input")
    if value is None:
        return "given: nothing"
    if isinstance(value, str):
        return f"given: {value!r}"
    return f"given: {reprlib.repr(value)}"


def _keys_at(model: type[BaseModel], path: Path) -> set[str]:
    """The keys that may stand at this path of a record's file, from the record's JSON schema."""
    # From the schema, not from annotations: pydantic has resolved unions, aliases and references in it.
    schema = model.model_json_schema()
    nodes = _members(schema, schema)
    for part in path:
        inner = [
            child
            for node in nodes
            for child in (
                node.get("properties", {}).get(part),
                node.get("items"),
                node.get("additionalProperties"),
            )
            if isinstance(child, dict)
        ]
        # A union's members are all followed: which of them was meant is not known when a key is wrong.
        nodes = [member for child in inner for member in _members(child, schema)]
    return {key for node in nodes for key in node.get("properties", {})}


def _members(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A schema's node, or those that it refers to or chooses among."""
    if "$ref" in node:
        return _members(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    choices = node.get("anyOf") or node.get("oneOf")
    if not choices:
        return [node]
    return [member for choice in choices for member in _members(choice, schema)]

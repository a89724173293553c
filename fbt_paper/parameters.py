"""A method's parameters: the value that holds for a dataset and scale, and what a table may set instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fbt_core.spec import Value
from fbt_paper.config import Problem, is_number, nearest, number_as_text
from fbt_paper.schema import MethodEntry, ParameterEntry


def default_values(method: MethodEntry, dataset: str, scale: str) -> dict[str, Value]:
    """Each parameter's value: methods.yaml's for the scale, else for the dataset, else the common one."""
    return {
        name: typed(entry, default_value(entry, dataset, scale)) for name, entry in method.parameters.items()
    }


def default_value(entry: ParameterEntry, dataset: str, scale: str) -> Value:
    """One parameter's value for a dataset and scale."""
    by_scale: Mapping[Any, Value] = entry.by_scale or {}
    by_dataset: Mapping[str, Value] = entry.by_dataset or {}
    return by_scale.get(scale, by_dataset.get(dataset, entry.value))


def typed(entry: ParameterEntry, value: Value) -> Value:
    """The value in the parameter's own type, so that 1 and 1.0 are one setting and one run."""
    if isinstance(entry.value, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def fault(entry: ParameterEntry, value: Value) -> str | None:
    """What is wrong with a value for this parameter; None when nothing is."""
    return _type_fault(entry.value, value) or _range_fault(entry, value)


def _type_fault(like: Value, value: Value) -> str | None:
    if like is None or value is None or isinstance(like, tuple):
        return None
    if isinstance(like, bool) or isinstance(value, bool):
        return (
            None
            if isinstance(like, bool) and isinstance(value, bool)
            else _expected("true or false", like, value)
        )
    if isinstance(like, (int, float)) and isinstance(value, str):
        return number_as_text(value) if is_number(value) else _expected("a number", like, value)
    if isinstance(like, int) and not isinstance(value, int):
        return _expected("a whole number", like, value)
    if isinstance(like, (int, float)) and not isinstance(value, (int, float)):
        return _expected("a number", like, value)
    return _expected("a name", like, value) if isinstance(like, str) and not isinstance(value, str) else None


def _expected(kind: str, like: Value, value: Value) -> str:
    if kind == "true or false" and not isinstance(like, bool):
        kind = "a number" if isinstance(like, (int, float)) else "a name"
    return f"must be {kind} (given: {value!r})"


def _range_fault(entry: ParameterEntry, value: Value) -> str | None:
    if entry.choices is not None and value not in entry.choices:
        return f"'{value}' is not a choice; {nearest(value, [str(choice) for choice in entry.choices])}"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if entry.minimum is not None and value < entry.minimum:
        return f"{value} is below the minimum, {entry.minimum:g}"
    if entry.maximum is not None and value > entry.maximum:
        return f"{value} is above the maximum, {entry.maximum:g}"
    return None


def entry_problems(name: str, method: MethodEntry) -> Iterator[Problem]:
    """Faults of the values that config/methods.yaml itself states."""
    for key, entry in method.parameters.items():
        stated: dict[str, Value] = {"value": entry.value}
        stated |= {f"by_dataset.{dataset}": value for dataset, value in (entry.by_dataset or {}).items()}
        stated |= {f"by_scale.{scale}": value for scale, value in (entry.by_scale or {}).items()}
        for where, value in stated.items():
            message = fault(entry, value)
            if message:
                yield Problem("config/methods.yaml", f"{name}.parameters.{key}.{where}", message)

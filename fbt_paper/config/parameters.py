"""A method's parameters: the value that holds for a dataset and scale, and what a table may set instead."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fbt_core.errors import nearest
from fbt_core.methods.registry import method_parameters
from fbt_core.spec import Value
from fbt_paper.config.problems import Problem, is_number, number_as_text
from fbt_paper.config.records import MethodEntry, ParameterEntry


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


def rule_faults(method: MethodEntry, values: Mapping[str, Value]) -> Iterator[tuple[Sequence[str], str]]:
    """What is wrong with a method's values taken together: the parameters concerned and the message."""
    for names in method.ordered:
        known = [name for name in names if isinstance(values.get(name), int | float)]
        for low, high in itertools.pairwise(known):
            if values[low] > values[high]:  # type: ignore[operator]
                yield (low, high), f"{low}, {values[low]}, is above {high}, {values[high]}"
    for demand in method.demands:
        wrong = [name for name, value in demand.then.items() if values.get(name) != value]
        if wrong and all(values.get(name) == value for name, value in demand.when.items()):
            yield (*demand.when, *wrong), f"{_said(demand.when)} needs {_said(demand.then)}: {demand.because}"


def _said(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# ---------------------------------------------------------------- config/methods.yaml itself


def entry_problems(name: str, method: MethodEntry, datasets: Collection[str] | None) -> Iterator[Problem]:
    """Faults of an entry of config/methods.yaml: against its method's file, its own limits, other names."""
    yield from (Problem("config/methods.yaml", path, message) for path, message in _code_faults(name, method))
    for key, entry in method.parameters.items():
        for where, message in _entry_faults(entry, datasets):
            yield Problem("config/methods.yaml", f"{name}.parameters.{key}.{where}", message)
    for where, used in _rule_names(method):
        if used not in method.parameters:
            message = f"unknown parameter '{used}'; {nearest(used, method.parameters)}"
            yield Problem("config/methods.yaml", f"{name}.{where}", message)


def _entry_faults(entry: ParameterEntry, datasets: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Places inside a parameter's entry and what is wrong there."""
    stated: dict[str, Value] = {"value": entry.value}
    stated |= {f"by_dataset.{dataset}": value for dataset, value in (entry.by_dataset or {}).items()}
    stated |= {f"by_scale.{scale}": value for scale, value in (entry.by_scale or {}).items()}
    for where, value in stated.items():
        message = fault(entry, value)
        if message:
            yield where, message
    for dataset in entry.by_dataset or ():
        if datasets is not None and dataset not in datasets:
            yield f"by_dataset.{dataset}", f"unknown dataset '{dataset}'; {nearest(dataset, datasets)}"


def _code_faults(name: str, method: MethodEntry) -> Iterator[tuple[str, str]]:
    """Where the entry and the class Parameters of the method's file differ."""
    kinds, file = method_parameters(name), f"fbt_core/methods/{name}.py"
    for key in kinds:
        if key not in method.parameters:
            yield f"{name}.parameters.{key}", f"is missing; {file} takes it"
    for key, entry in method.parameters.items():
        where = f"{name}.parameters.{key}"
        if key not in kinds:
            yield where, f"{file} takes no such parameter; {nearest(key, kinds)}"
            continue
        yield from ((f"{where}.{part}", message) for part, message in _kind_faults(entry, kinds[key], file))


def _kind_faults(entry: ParameterEntry, kind: Any, file: str) -> Iterator[tuple[str, str]]:
    """Whether the value's type is the code's, and no choice is one that the code lacks."""
    if isinstance(kind, tuple):
        for choice in entry.choices or ():
            if choice not in kind:
                yield "choices", f"{file} knows no '{choice}'; {nearest(choice, map(str, kind))}"
        if entry.value not in kind:
            yield "value", f"{file} knows no '{entry.value}'; {nearest(entry.value, map(str, kind))}"
    elif kind is not None and type(entry.value).__name__ != kind:
        words = {"bool": "true or false", "int": "a whole number", "float": "a number with a point, e.g. 1.0"}
        yield "value", f"{file} takes {words.get(kind, 'a text')} (given: {entry.value!r})"


def _rule_names(method: MethodEntry) -> Iterator[tuple[str, str]]:
    for i, names in enumerate(method.ordered):
        yield from ((f"ordered[{i}]", name) for name in names)
    for i, demand in enumerate(method.demands):
        for part, values in (("when", demand.when), ("then", demand.then)):
            yield from ((f"demands[{i}].{part}", name) for name in values)

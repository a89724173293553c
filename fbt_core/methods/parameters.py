"""Checks a method's parameters: every one given, none unknown, each of its type and choices."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fbt_core.errors import UserError


class ParameterError(UserError):
    """A method was given parameters it does not take; the message lists every fault at once."""


def read_parameters(record: type, values: Mapping[str, Any], method: str) -> Any:
    """A frozen record of a method's parameters from a mapping; raises ParameterError naming all faults."""
    kinds = {field.name: get_type_hints(record)[field.name] for field in dataclasses.fields(record)}
    faults = [_unknown(name, kinds) for name in values if name not in kinds]
    faults += [f"{name}: missing" for name in kinds if name not in values]
    faults += [
        f"{name}: {fault}"
        for name, kind in kinds.items()
        if name in values and (fault := _fault(values[name], kind))
    ]
    if faults:
        raise ParameterError("; ".join(faults), where=f"parameters of method '{method}'")
    return record(**{name: float(v) if kinds[name] is float else v for name, v in values.items()})


def _unknown(name: str, kinds: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, kinds, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    return f"{name}: not a parameter{hint} (parameters: {', '.join(kinds) or 'none'})"


def _fault(value: Any, kind: Any) -> str:
    """What is wrong with a value, or an empty string."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return "" if value in choices else f"{value!r} is not one of {', '.join(map(str, choices))}"
    allowed = (int, float) if kind is float else (kind,)
    fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    return "" if fits else f"{value!r} is not {_NAMES[kind]}"


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

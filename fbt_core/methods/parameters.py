"""The parameters of a method in training: a spec's values, checked, as attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fbt_core.errors import UserError
from fbt_core.methods.facts import MethodFacts


class ParameterError(UserError):
    """A method was given parameters it does not take; the message lists every fault at once."""


class Parameters:
    """Values as attributes (`settings.temperature`), which do not change."""

    def __init__(self, method: str, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values, _method=method)

    def __getattr__(self, name: str) -> Any:
        method = self.__dict__.get("_method")
        raise AttributeError(f"config/methods.yaml states no parameter '{name}' of {method}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"parameters do not change: {name} stays {getattr(self, name)!r}")


def read_parameters(method: str, facts: MethodFacts, values: Mapping[str, Any], classes: int) -> Parameters:
    """The parameters of a spec; one that was added to the method since has the value it had before.

    Raises ParameterError, which lists every missing, unknown or wrong one.
    """
    # First: what was added since is then checked like what was always there.
    values = facts.complete(values)
    faults = [f"{name}: is missing" for name in facts.parameters if name not in values]
    for name, value in values.items():
        fault = facts.fault(method, name, value)
        if fault:
            faults.append(f"{name}: {fault}")
    # Taken together after each alone: a conflict between wrong values would confuse.
    faults += [message for _, message in facts.conflicts(values, classes)]
    if faults:
        raise ParameterError("; ".join(faults), where=f"parameters of method '{method}'")
    return Parameters(method, {name: facts.parameters[name].typed(value) for name, value in values.items()})

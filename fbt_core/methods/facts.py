"""What config/methods.yaml states of a method: what it is, its revision, its parameters. Imports no torch.

Each fact is stated there and nowhere else. The planner reads the file of its own config folder, the engine
and the figures that of this checkout, with `method_facts`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError

from fbt_core.errors import UserError, is_number, nearest, number_as_text
from fbt_core.spec import Key, Strict, Value

# setup.py puts it into a wheel, which has no config folder.
PACKAGED = Path(__file__).with_name("methods.yaml")
FILE = PACKAGED
if not FILE.exists():
    FILE = Path(__file__).parents[2] / "config" / "methods.yaml"
Text = Annotated[str, StringConstraints(min_length=1)]
Kind = Literal["true or false", "a number", "a whole number", "a name"]


class UnknownMethodError(UserError):
    """A method that config/methods.yaml does not state."""


class ParameterFacts(Strict):
    """One parameter: its value, what else it may be, and where the value comes from."""

    value: Value = Field(description="true or false, a number or a name; no value of another kind fits")
    whole: bool = Field(default=False, description="true: only whole numbers; else 1 and 1.0 are one number")
    choices: tuple[Value, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    before: Value = Field(
        default=None,
        description="for a parameter added later: the value that means what the method did before it had the "
        "parameter. A run with this value keeps the id that it had then",
    )
    fewer_than_classes: bool = Field(
        default=False, description="true: a count that must be below the dataset's number of classes"
    )
    by_dataset: dict[Key, Value] | None = None
    by_scale: dict[Key, Value] | None = Field(
        default=None, description="for a scale, and for those that extend it"
    )
    source: Text

    @property
    def kind(self) -> Kind:
        """What a value must be; a bound makes it a number, whatever the stated value is."""
        # bool first: Python counts True as a whole number.
        if isinstance(self.value, bool):
            return "true or false"
        if isinstance(self.value, int | float) or (self.minimum, self.maximum) != (None, None):
            return "a whole number" if self.whole else "a number"
        return "a name"

    def value_for(self, dataset: str, scales: Sequence[str]) -> Value:
        """The value for the first of the scales that has one, else the dataset's, else the common one.

        `scales` is a scale and, one after the other, those that it extends.
        """
        by_scale, by_dataset = self.by_scale or {}, self.by_dataset or {}
        # A scale's own value wins over a data set's: scale smoke shrinks counts whatever the data.
        value = by_dataset.get(dataset, self.value)
        return self.typed(next((by_scale[scale] for scale in scales if scale in by_scale), value))

    def typed(self, value: Value) -> Value:
        """The value in the parameter's own type, so that 1 and 1.0 are one setting and one run."""
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if is_integer and self.kind == "a number" else value  # type: ignore[arg-type]

    def fault(self, value: Value) -> str | None:
        """What is wrong with a value for this parameter; None if nothing is."""
        if not self._fits(value):
            # YAML reads 1e-3 as text: said in so many words, because it looks like a number.
            if "number" in self.kind and isinstance(value, str) and is_number(value):
                return number_as_text(value)
            return f"must be {self.kind} (given: {value!r})"
        if self.choices is not None and value not in self.choices:
            return f"'{value}' is not a choice; {nearest(value, map(str, self.choices))}"
        if self.minimum is not None and value < self.minimum:  # type: ignore[operator]
            return f"{value} is below the minimum, {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:  # type: ignore[operator]
            return f"{value} is above the maximum, {self.maximum:g}"
        return None

    def _fits(self, value: Value) -> bool:
        if self.kind == "true or false" or isinstance(value, bool):
            return self.kind == "true or false" and isinstance(value, bool)
        types = {"a number": (int, float), "a whole number": (int,), "a name": (str,)}
        return isinstance(value, types[self.kind])


class Demand(Strict):
    """Values that a parameter's value asks of others, and why: what the method refuses to train otherwise."""

    when: dict[Key, Value]
    then: dict[Key, Value]
    because: Text


class MethodFacts(Strict):
    """Everything stated about one method."""

    title: Text
    citation: Text
    source: Text
    transfers: Text = Field(description="what goes from teacher to student: logits, features, relations, ...")
    levels: Literal[1, 2, 3] = Field(description="networks in the chain; 3: a fused model between the two")
    losses: tuple[Text, ...]
    formula: Text = Field(description="the loss, with the names of the parameters")
    generic: bool = Field(description="true: takes any pair as published")
    adapted: Text | None = Field(
        default=None, description="what was changed here, e.g. so that it trains any pair"
    )
    extra_parameters: bool = Field(description="true: trains modules beside the student")
    needs_teacher: bool = True
    uses_fusion: bool = Field(default=False, description="true: its runs depend on fbt_core/fusion too")
    score: Text | None = Field(
        default=None, description="whose accuracy is reported, if not the bare student's"
    )
    exports: Text | None = Field(
        default=None, description="what weights.safetensors holds, if not a classifier"
    )
    revision: int = Field(
        ge=1, description="raise it if a fix in the method's code changes its runs' numbers"
    )
    parameters: dict[Key, ParameterFacts]
    ordered: tuple[tuple[Key, ...], ...] = Field(
        default=(), description="parameters whose values may not fall from one to the next"
    )
    demands: tuple[Demand, ...] = ()

    def fault(self, method: str, name: str, value: Value) -> str | None:
        """What is wrong with one parameter of the method of this name; None if nothing is."""
        if name not in self.parameters:
            return f"unknown parameter of {method}; {nearest(name, self.parameters)}"
        return self.parameters[name].fault(value)

    def conflicts(self, values: Mapping[str, Value], classes: int) -> Iterator[tuple[Sequence[str], str]]:
        """What is wrong with the values taken together, and with so many classes: parameters and message."""
        for name, entry in self.parameters.items():
            # Only values that are there: a missing one is reported where single values are checked.
            value = values.get(name)
            if entry.fewer_than_classes and isinstance(value, int) and value >= classes:
                yield (name,), f"{value} classes are not fewer than all {classes}; use {classes - 1} or fewer"
        for names in self.ordered:
            known = [name for name in names if isinstance(values.get(name), int | float)]
            for low, high in itertools.pairwise(known):
                if values[low] > values[high]:  # type: ignore[operator]
                    yield (low, high), f"{low}, {values[low]}, is above {high}, {values[high]}"
        for demand in self.demands:
            # The names of what is wrong, for the message; a demand counts if all of `when` holds.
            wrong = [name for name, value in demand.then.items() if values.get(name) != value]
            if wrong and all(values.get(name) == value for name, value in demand.when.items()):
                message = f"{_say(demand.when)} needs {_say(demand.then)}: {demand.because}"
                yield (*demand.when, *wrong), message

    def values_for(self, dataset: str, scales: Sequence[str]) -> dict[str, Value]:
        """Each parameter's stated value for a dataset and scale (as in ParameterFacts.value_for)."""
        return {name: entry.value_for(dataset, scales) for name, entry in self.parameters.items()}

    def in_spec(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values that a spec holds: a parameter added later is left out at the value it had before."""
        earlier = self._earlier_values()
        return {
            name: value for name, value in values.items() if name not in earlier or value != earlier[name]
        }

    def complete(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """A spec's values and, for each parameter added later that it leaves out, the value from before."""
        return {**self._earlier_values(), **values}

    def _earlier_values(self) -> dict[str, Value]:
        return {name: entry.before for name, entry in self.parameters.items() if entry.before is not None}


@cache
def read_facts(file: Path) -> dict[str, MethodFacts]:
    """All methods of a methods.yaml, by name; raises UserError for a file that is not sound."""
    try:
        # libyaml if it is there: this file is read at every start.
        content = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {name: MethodFacts.model_validate_json(json.dumps(entry)) for name, entry in content.items()}
    except (yaml.YAMLError, ValidationError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(first, where=str(file), hint="`fbt plan` lists all problems of the file") from None


def method_facts(name: str) -> MethodFacts:
    """What this checkout's config/methods.yaml states of a method; raises UnknownMethodError."""
    facts = read_facts(FILE)
    if name not in facts:
        raise UnknownMethodError(f"there is no method '{name}'", given=name, choices=facts)
    return facts[name]


def _say(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

"""Problems of config/methods.yaml: each entry against its own limits, other files' names, and the code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fbt_core.errors import nearest
from fbt_core.methods.facts import FILE, MethodFacts, ParameterFacts, read_facts
from fbt_core.spec import Value
from fbt_paper.config.problems import Problem

METHODS = "config/methods.yaml"


def entry_problems(
    name: str, method: MethodFacts, names: Mapping[str, Collection[str] | None]
) -> Iterator[Problem]:
    """Faults of a method's entry; `names` are the known datasets and scales, None if they cannot be read."""
    yield from (Problem(METHODS, f"{name}.{path}", message) for path, message in _other_facts(name, method))
    for key, entry in method.parameters.items():
        for where, message in _value_faults(entry, names):
            yield Problem(METHODS, f"{name}.parameters.{key}.{where}", message)
    for where, used in _used_names(method):
        if used not in method.parameters:
            message = f"unknown parameter '{used}'; {nearest(used, method.parameters)}"
            yield Problem(METHODS, f"{name}.{where}", message)


def _value_faults(
    entry: ParameterFacts, names: Mapping[str, Collection[str] | None]
) -> Iterator[tuple[str, str]]:
    """Paths inside a parameter's entry and what is wrong there."""
    stated: dict[str, Value] = {"value": entry.value}
    if entry.before is not None:
        stated["before"] = entry.before
    # Values for other data sets and scales as well: a mistake is found before one of them is planned.
    stated |= {f"by_dataset.{dataset}": value for dataset, value in (entry.by_dataset or {}).items()}
    stated |= {f"by_scale.{scale}": value for scale, value in (entry.by_scale or {}).items()}
    for where, value in stated.items():
        message = entry.fault(value)
        if message:
            yield where, message
    for kind, values in (("dataset", entry.by_dataset), ("scale", entry.by_scale)):
        known = names[kind]
        for key in values or ():
            if known is not None and key not in known:
                yield f"by_{kind}.{key}", f"unknown {kind} '{key}'; {nearest(key, known)}"


def _other_facts(name: str, method: MethodFacts) -> Iterator[tuple[str, str]]:
    """Facts of a user's own config folder that state what the code of this checkout does not do.

    The code goes with the methods.yaml of the checkout: values and sources may differ from it, but not which
    parameters there are, of which kind and with which choices.
    """
    # The engine reads the file of its checkout, whatever folder was planned: the two must agree.
    code, file = read_facts(FILE).get(name), f"fbt_core/methods/{name}.py"
    if code is None:
        yield "parameters", f"{FILE} has no '{name}'; the engine reads it there, so state it there as well"
        return
    for key in code.parameters:
        # A parameter with `before` may be missing: specs leave it out at that value.
        if key not in method.parameters and code.parameters[key].before is None:
            yield f"parameters.{key}", f"is missing; {file} takes it"
    for key, entry in method.parameters.items():
        if key not in code.parameters:
            message = f"{file} takes no such parameter; {nearest(key, code.parameters)}"
            yield f"parameters.{key}", message
            continue
        expected = code.parameters[key]
        if entry.kind != expected.kind:
            message = f"{file} takes {expected.kind} (given: {entry.value!r})"
            yield f"parameters.{key}.value", message
        for choice in entry.choices or ():
            if expected.choices is not None and choice not in expected.choices:
                valid = nearest(choice, expected.choices)
                yield f"parameters.{key}.choices", f"{file} knows no '{choice}'; {valid}"
    # The revision is part of the run id: with another one, ids would promise what the code does not do.
    if method.revision != code.revision:
        message = f"{method.revision}, but {file} has revision {code.revision}; see what changed in {FILE}"
        yield "revision", message


def _used_names(method: MethodFacts) -> Iterator[tuple[str, str]]:
    """The parameters that `ordered` and `demands` name, each with its path."""
    for i, names in enumerate(method.ordered):
        yield from ((f"ordered[{i}]", name) for name in names)
    for i, demand in enumerate(method.demands):
        for part, values in (("when", demand.when), ("then", demand.then)):
            yield from ((f"demands[{i}].{part}", name) for name in values)

"""docs/methods.md: a section per method, from its file and config/methods.yaml.

python -m fbt_core.methods.document     # writes it; a test keeps it in step
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from fbt_core.files import write_text
from fbt_core.methods.facts import FILE, MethodFacts, ParameterFacts, read_facts

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
INTRODUCTION = """# Methods

Written by `python -m fbt_core.methods.document` from `config/methods.yaml` and the files of the methods.

In the formulas y are the labels, s and t the student's and the teacher's logits, f_s and f_t their features;
CE is the cross-entropy with the recipe's label smoothing or mixed labels. A row or column of a table may set
any parameter (`parameters: {temperature: 4.0}`), and the run then has another id. As a source, "OFA" is the
code of OFA (Hao840/OFAKD), "released" the method's own code, "open" this repository's choice.
"""
STUDY = PAGE.parent / "mini-study" / "runs"
LINKED = re.compile(r"docs/paper-facts\.md#([\w-]+)")


def methods_page() -> str:
    """The text of docs/methods.md."""
    facts = read_facts(FILE)
    links = ", ".join(f"[{entry.title}](#{_anchor(entry.title)})" for entry in facts.values())
    sections = ["\n".join(_section(name, entry)) for name, entry in facts.items()]
    return "\n".join([INTRODUCTION, f"{links}.\n", *sections])


def _section(name: str, facts: MethodFacts) -> Iterator[str]:
    """Idea, formula, what was adapted, and every parameter of one method."""
    # Read as text: importing a method would load torch, for a page of words.
    code = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    yield f"## {facts.title}\n"
    yield f"{ast.get_docstring(ast.parse(code))}\n"
    yield f"    {facts.formula}\n"
    file = f"fbt_core/methods/{name}.py"
    yield f"- Method `{name}`, revision {facts.revision}: [{file}](../{file})."
    yield f"- {facts.citation}."
    trained = "the student alone"
    if facts.extra_parameters:
        trained = "modules beside the student"
    yield f"- Transfers {facts.transfers}; trains {trained}."
    yield f"- Source of the settings: {_linked(facts.source)}."
    yield f"- {_adaptation(facts)}."
    if facts.score:
        yield f"- The score is that of {facts.score}; the weights file holds {facts.exports}."
    yield f"- {_shipped(name)}."
    yield ""
    if facts.parameters:
        yield "| parameter | value | may be | source |"
        yield "|---|---|---|---|"
        for key, entry in facts.parameters.items():
            source = _linked(entry.source)
            if entry.before is not None:
                source += f"; runs from before it was added have {_text(entry.before)}"
            yield f"| `{key}` | {_value(entry)} | {_range(entry)} | {source} |"
        yield ""


def _shipped(name: str) -> str:
    """The first of the shipped runs with this method, linked, and how many there are."""
    runs = [
        folder.parent.name
        for folder in sorted(STUDY.glob("*/metrics.json"))
        if json.loads(folder.read_text(encoding="utf-8"))["spec"]["method"]["name"] == name
    ]
    if not runs:
        return "No run of it is in the [shipped study](mini-study.md)"
    first = f"[{runs[0]}](mini-study/runs/{runs[0]}/metrics.json)"
    many = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"Runs in the [shipped study](mini-study.md): {first}{many}"


def _anchor(title: str) -> str:
    """A heading as links name it: lower case, hyphens for blanks, no punctuation."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _adaptation(facts: MethodFacts) -> str:
    if facts.adapted:
        return f"Adapted: {facts.adapted}"
    if facts.needs_teacher:
        return "Takes any pair as published"
    return "Needs no teacher"


def _value(entry: ParameterFacts) -> str:
    """The value, and those of single data sets and of scale smoke."""
    others = {**(entry.by_dataset or {}), **(entry.by_scale or {})}
    return "; ".join([_text(entry.value), *(f"{key}: {_text(value)}" for key, value in others.items())])


def _range(entry: ParameterFacts) -> str:
    if entry.choices:
        return ", ".join(map(_text, entry.choices))
    bounds = [f"≥ {entry.minimum:g}"] if entry.minimum is not None else []
    bounds += [f"≤ {entry.maximum:g}"] if entry.maximum is not None else []
    return " ".join([entry.kind.removeprefix("a "), *bounds])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _linked(text: str) -> str:
    """The text with links to what is known of the paper."""
    return LINKED.sub(r"[paper facts: \1](paper-facts.md#\1)", text)


if __name__ == "__main__":
    write_text(PAGE, methods_page())
    print(PAGE)

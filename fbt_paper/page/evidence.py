"""Where each setting of a run comes from, and how sure that is: what the evidence cards mark and count."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fbt_paper.config.load import Config

KINDS = {"paper": "the paper's", "code": "the code it follows", "ours": "our assumption"}
"""Kind of a source -> what it is called on the page."""
OURS = re.compile(r"\bopen\b|\bours\b|\bnot stated\b|\ban option, off\b|neither .* says", re.IGNORECASE)
PAPER = re.compile(
    r"^(the )?(paper|appendix|main paper|L_FBT)|docs/paper-facts\.md#(objective|training-cost)"
)


def kind_of(source: str) -> str:
    """What kind of source a text names: paper, code (of OFA or the method's authors) or ours."""
    # What is open stays an assumption, whatever else the text cites for it.
    if OURS.search(source):
        return "ours"
    return "paper" if PAPER.search(source) else "code"


def describe_sources(config: Config, methods: Iterable[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Of `recipe`, `teacher recipe` and each method: setting -> (source, kind)."""
    stated = config.recipes.sources
    recipe = {path: (source, kind_of(source)) for path, source in stated.items() if path != "teacher"}
    if config.scale.recipes:
        # The scale's own numbers: what the sources say of the paper's would be wrong of them.
        recipe = {"*": (config.scale.source, "ours")}
    sources = {"recipe": recipe}
    if "teacher" in stated and not config.scale.recipes:
        sources["teacher recipe"] = {"*": (stated["teacher"], kind_of(stated["teacher"]))}
    for name in sorted(set(methods)):
        parameters = config.methods[name].parameters
        sources[name] = {key: (facts.source, kind_of(facts.source)) for key, facts in parameters.items()}
    return sources

"""The examples that open the two base files run, and docs/methods.md is what the code and the facts say."""

from __future__ import annotations

import doctest
import importlib

import pytest

from fbt_core.methods import method_facts, method_names
from fbt_core.methods.document import PAGE, methods_page


@pytest.mark.parametrize("module", ["fbt_core.methods.base", "fbt_core.staged.base"])
def test_the_example_at_the_top_runs(module):
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert failed == 0
    assert attempted >= 6


def test_the_page_is_in_step():
    assert PAGE.read_text() == methods_page(), "python -m fbt_core.methods.document"


@pytest.mark.parametrize("name", method_names())
def test_a_section_says_everything_about_a_method(name):
    facts = method_facts(name)
    section = methods_page().split(f"\n## {facts.title}\n")[1].split("\n## ")[0]
    assert facts.formula in section and facts.citation in section
    assert not facts.adapted or facts.adapted in section
    assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == [
        *facts.parameters
    ]
    for entry in facts.parameters.values():
        assert entry.source.rpartition("#")[2].partition(":")[2] in section

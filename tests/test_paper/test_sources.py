"""Sources that open: every pointer to a page of this repository leads to a file and a section that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fbt_paper.config.load import load

ROOT = Path(__file__).parents[2]
POINTER = re.compile(r"\b((?:docs|config)/[\w/-]+\.md)#([\w-]+)")
LINK = re.compile(r"\]\(([^)#: ]*)(?:#([\w-]+))?\)")
PAGES = sorted(p for folder in (".", "docs", "config", "plugin") for p in (ROOT / folder).glob("*.md"))
CONFIG = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("config/tables/*"), *ROOT.glob("config/figures/*")])


def anchors(page: Path) -> set[str]:
    """The sections of a page as links name them: lower case, blanks to hyphens, punctuation dropped."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def pointers(file: Path) -> Iterator[tuple[Path, str]]:
    """(page, section) of every pointer in a file; relative links count from the file's own folder."""
    text = file.read_text()
    yield from ((ROOT / page, section) for page, section in POINTER.findall(text))
    if file.suffix == ".md":
        for page, section in LINK.findall(text):
            yield (file.parent / page if page else file), section


@pytest.mark.parametrize("file", [*PAGES, *CONFIG], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_pointer_leads_to_a_section(file):
    for page, section in pointers(file):
        assert page.exists(), f"{file.name} points to {page}, which is not there"
        assert not section or section in anchors(page), f"{file.name}: {page.name} has no section #{section}"


def test_a_pointer_to_nowhere_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```\n# not a heading\n```\n\n## Part two: the rest\n[up](#a-page)\n")
    assert anchors(page) == {"a-page", "part-two-the-rest"}
    assert list(pointers(page)) == [(page, "a-page")]


def test_methods_point_to_what_is_known_of_the_paper():
    text = (ROOT / "config/methods.yaml").read_text()
    assert len(POINTER.findall(text)) >= 30
    assert "facts section" not in text
    for name, method in yaml.safe_load(text).items():
        sources = [method.get("source", ""), *(p["source"] for p in method["parameters"].values())]
        assert all(source.strip() for source in sources), f"{name} has a number without a source"


def test_the_newer_methods_have_the_numbers_of_the_grid():
    """What is vouched for in one table is neither missing nor another number in the other."""
    references = load().references
    grid, newer = (
        {(line.row, line.column, line.value, line.status, line.source) for line in references[name]}
        for name in ("cifar100", "modern")
    )
    assert newer
    assert newer <= grid


def test_numbers_that_are_not_the_appendixs_say_where_they_are_from():
    for path in ROOT.glob("config/tables/*.reference.csv"):
        for line in path.read_text().splitlines()[1:]:
            assert ",primary," in line or POINTER.search(line), f"{path.name}: {line}"

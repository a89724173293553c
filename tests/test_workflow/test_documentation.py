"""The site is built strictly (links, anchors) and reads without a network; its reference is in step."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fbt_paper.cli import make_parser
from scripts.reference_pages import DOCS, PAGES
from scripts.site_pages import PAGES as FROM_BESIDE
from scripts.site_pages import on_page_markdown

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in FROM_BESIDE if name != "CHANGELOG.md"] + sorted(DOCS.glob("*.md"))
FETCHED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")
SPAN = re.compile(r"`fbt ([^`]+)`")
LINE = re.compile(r"^(?:    |\$ )fbt +([^#\s][^#\n]*)", re.M)


def test_the_site_is_whole_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # Not --quiet: it drops the warnings that --strict counts, and a broken link would pass.
    assert "Documentation built" in done.stderr
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert {"index", "faq", "cluster", "contributing", "executor", "tables", "command"} <= set(pages)
    assert not {address for text in pages.values() for address in FETCHED.findall(text)}
    assert "Open points of the paper" in pages["config"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_in_step(name):
    assert (DOCS / name).read_text() == PAGES[name](), "python -m scripts.reference_pages"


def test_the_reference_has_every_option():
    page = PAGES["command.md"]()
    section = page.split("## `fbt bench`")[1].split("\n## ")[0]
    for shown in ("`--method METHOD` | default: fbt", "float32, tf32", "fbt bench --method kd --seconds 10"):
        assert shown in section
    assert "`--to FILE` | a new zip file; needed |" in page
    assert "--given" not in page


def test_links_go_where_the_pages_lie():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="python.md"))
    text = "[a](../CONTRIBUTING.md#add-a-dataset) [b](packs.md) [c](../fbt_core/run.py) [d](../nowhere.py)"
    expected = "[a](contributing.md#add-a-dataset) [b](packs.md) c [d](../nowhere.py)"
    assert on_page_markdown(text, page) == expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_in_the_text_is_one_that_exists(path, capsys):
    """Those that need results or a cluster as well: names and options, not what they do."""
    text, parser = path.read_text(), make_parser()
    for command in [*SPAN.findall(text), *LINE.findall(text)]:
        words = shlex.split(command)
        if words[0] == "COMMAND":
            continue
        try:
            # A single word is the command's name in a sentence.
            parser.parse_args([*words, "--help"] if len(words) == 1 else words)
        except SystemExit as end:
            assert not end.code, f"fbt {command}: {capsys.readouterr().err}"

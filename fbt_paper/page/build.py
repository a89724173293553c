"""`fbt build-page`: the results page from the results on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fbt_core.files import write_text
from fbt_paper.page.content import Record, as_json_ready, describe_page
from fbt_paper.plan.targets import Flow

FOLDER = Path(__file__).parent


def write_page(
    flow: Flow,
    page: str,
    about: Iterable[Path],
    claims: Path | None = None,
    unfinished: Mapping[str, str] | None = None,
) -> Path:
    """Write results/<scale>/<page>.html whole, with the figures that `about` describes; returns its path.

    `claims` is the CSV of verdicts that the page begins with; runs in `unfinished` are shown as they stand.
    """
    # Beside the finished page, which is an output of a rule: links to figures are the same from both.
    name = page
    if unfinished is not None:
        name = {"index": "partial", "grid": "partial_grid"}[page]
    path = Path(flow.results, f"{name}.html")
    write_text(path, render_page(describe_page(flow, page, about, claims, unfinished)))
    return path


def render_page(content: Record) -> str:
    """The page's HTML: style, script, pictures and data are all inside it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        # Not select_autoescape(): the template's name ends in .j2, for which that escapes nothing.
        autoescape=True,
        # A misspelt name is an error, not an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: "" if value is None else f"{value:+.2f}"
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.2f}"
    html: str = environment.get_template("page.html.j2").render(
        content,
        # Our own files; escaped, their quotes and > would break.
        diagram=Markup((FOLDER / "diagram.svg").read_text(encoding="utf-8")),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        data=embed(page_data(content)),
    )
    return html


def page_data(content: Record) -> Record:
    """What the page's script works on: runs, cells, sources of settings, texts to copy."""
    shared: list[Record] = []
    runs = {run: _share(record, shared) for run, record in content["runs"].items()}
    lines = [line for table in content["tables"] for line in table["lines"]]
    cells = {cell["id"]: cell for line in lines for cell in line.get("cells", ()) if cell["there"]}
    copied = {key: content[key] for key in ("again", "sources", "kinds", "titles")}
    return {**copied, "runs": runs, "shared": shared, "cells": cells, "copies": copies(content)}


def _share(record: Record, shared: list[Record]) -> Record:
    """The record with its mappings replaced by {"=": index in `shared`}; equal ones are stored once."""
    compact = {}
    for key, value in record.items():
        # What most runs have in common (data, networks, recipe, versions) is most of a page with hundreds.
        if key == "spec":
            value = _share(value, shared)
        elif isinstance(value, dict) and value and key not in ("curves", "best", "last", "ema"):
            if value not in shared:
                shared.append(value)
            value = {"=": shared.index(value)}
        compact[key] = value
    return compact


def copies(content: Record) -> dict[str, dict[str, str]]:
    """The text of each table's copy buttons."""
    return {table["key"]: {kind: table[kind] for kind in ("latex", "csv")} for table in content["tables"]}


def embed(value: object) -> Markup:
    """JSON that may stand inside a script element whatever text it holds."""
    # Compact: the page is one file to send, and holds every run.
    text = json.dumps(as_json_ready(value), ensure_ascii=False, separators=(",", ":"))
    # Browsers end a script at </script> even inside a string, and older ones a string at U+2028.
    for sign, code in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(sign, code)
    return Markup(text)

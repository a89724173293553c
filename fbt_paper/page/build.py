"""`fbt build-page`: the results page from the results on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fbt_core.files import write_text
from fbt_paper.page.content import Record, as_json_ready, describe_page
from fbt_paper.plan.targets import Flow

FOLDER = Path(__file__).parent


def write_page(flow: Flow, page: str, about: Iterable[Path], claims: Path | None = None) -> Path:
    """Write results/<scale>/<page>.html whole, with the figures that `about` describes; returns its path.

    `claims` is the CSV of verdicts that the page begins with.
    """
    path = Path(flow.results, f"{page}.html")
    write_text(path, render_page(describe_page(flow, page, about, claims)))
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
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.2f}"
    html: str = environment.get_template("page.html.j2").render(
        **content,
        # Our own files; escaped, their quotes and > would break.
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        data=embed({"runs": content["runs"], "again": content["again"], "copies": copies(content)}),
    )
    return html


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

"""What mkdocs asks while it builds the site: documents from beside docs/ become pages, links are put right.

The documents stay where a reader of the repository looks for them, each fact once. On the site a link to a
file that is no page (code, a folder) becomes plain text; one to a file that is nowhere stays, so that a
strict build fails.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "config/README.md": "config.md",
    "plugin/README.md": "executor.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^)\s:#]+)(#[\w-]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with links between pages of the site."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda match: _link(match, posixpath.dirname(source)), markdown)


def _link(match: re.Match[str], folder: str) -> str:
    """A link of a document in this folder, as the site has it."""
    picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in PAGES:
        return f"[{text}]({PAGES[path]}{anchor})"
    if path.startswith("docs/"):
        return f"{picture}[{text}]({path.removeprefix('docs/')}{anchor})"
    return text if (ROOT / path).exists() else match[0]

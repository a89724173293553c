"""A table's files: CSV, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

from fbt_core.files import write_text
from fbt_paper.tables.latex import to_latex
from fbt_paper.tables.render import to_csv, to_markdown
from fbt_paper.tables.results import Results


def write_table(results: Results, folder: Path, paper: bool = True) -> list[Path]:
    """<folder>/<table>.csv, .md and .tex; returns their paths. `paper`: with the printed numbers."""
    texts = {"md": to_markdown(results, paper), "tex": to_latex(results, paper)}
    # A program that reads the CSV leaves out columns by itself.
    if paper:
        texts = {"csv": to_csv(results), **texts}
    paths = [folder / f"{results.key}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths

"""The words of this house: no private dialect in code, comments, messages and docs, and no long ternary.

python scripts/check_words.py [PATH ...]     # all that git tracks; 1 if a word is found

A line that needs such a word (a quotation, another program's own word) ends with `words: allow` in a comment.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

WORDS = {
    r"(?<!in )(?<!decimal )(?<!takes )\b[Pp]lace[sd]?\b": "rank, sourced setting, slot, index or cell",
    r"\b(told|tells?|telling)\b": "report, error, label",
    r"\b(mend|mends|mended|mending)\b": "fix, hint",
    r"\b(deaf|wish|wishes|obeys?|adopts?|adopted|adoption|obstacles?|makers)\b": (
        "ignore_signals, vote, act_on, re-attach, conflict"
    ),
    r"\bleave_if\w*\b": "stop_if_voted",
}
CONTROLLER = {r"\b[Hh]ead(s|er|ers)?\b": "controller ('head' is a network's classifier); header of a file"}
CONTROLLER_FILES = ("plugin/", "profiles/", "fbt_paper/status/")
VARIABLES = {"one", "own", "found", "given"}
CLASSES = {"Record", "Entry", "Line", "Finding", "Place", "Placed"}
LONGEST_TERNARY = 70
"""Characters of a conditional expression in shipped code; a longer one is an `if` statement."""
SHIPPED = ("fbt_core/", "fbt_paper/", "plugin/src/", "workflow/", "scripts/", "benchmarks/")
ENDINGS = (".py", ".smk", ".md", ".yaml", ".sh", ".toml", "Snakefile", "Makefile", "run")
SKIPPED = ("CHANGELOG.md", "scripts/check_words.py", "docs/mini-study/", "tests/test_words.py")


def tracked() -> list[Path]:
    """The files that git tracks."""
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listing.splitlines()]


def problems(path: Path) -> Iterator[str]:
    """Each use of a word of the list, with its line and the words to take instead."""
    text = path.read_text()
    allowed = {n for n, line in enumerate(text.splitlines(), 1) if line.rstrip().endswith("words: allow")}
    patterns = WORDS
    if str(path).startswith(CONTROLLER_FILES):
        patterns = WORDS | CONTROLLER
    for number, line in enumerate(text.splitlines(), start=1):
        if number in allowed:
            continue
        for pattern, instead in patterns.items():
            for match in re.finditer(pattern, line):
                yield f"{path}:{number}: '{match.group()}': say {instead}"
    if path.suffix == ".py":
        tree = ast.parse(text)
        yield from named(path, tree, allowed)
        if str(path).startswith(SHIPPED):
            yield from long_ternaries(path, tree, text)


def long_ternaries(path: Path, tree: ast.AST, text: str) -> Iterator[str]:
    """Conditional expressions that are longer than two short values are, or take more than a line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            source = ast.get_source_segment(text, node) or ""
            if "\n" in source or len(source) > LONGEST_TERNARY:
                yield f"{path}:{node.lineno}: a ternary of {len(source)} characters: say it with if"


def named(path: Path, tree: ast.AST, allowed: Collection[int]) -> Iterator[str]:
    """Variables and classes whose name does not say what they hold, but for those on the allowed lines."""
    for node in ast.walk(tree):
        if getattr(node, "lineno", None) in allowed:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VARIABLES:
            yield f"{path}:{node.lineno}: variable '{node.id}': name what it holds (run, entry, path)"
        if isinstance(node, ast.arg) and node.arg in VARIABLES:
            yield f"{path}:{node.lineno}: argument '{node.arg}': name what it holds (run, entry, path)"
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            yield f"{path}:{node.lineno}: class '{node.name}': name its kind (TrainingLog, TableLine)"


def main(arguments: list[str]) -> int:
    """Print every problem; 1 if there is one."""
    chosen = tracked()
    if arguments:
        chosen = [path for path in chosen if any(str(path).startswith(a.rstrip("/")) for a in arguments)]
    lines = [
        line
        for path in chosen
        if str(path).endswith(ENDINGS) and path.is_file() and not str(path).startswith(SKIPPED)
        for line in problems(path)
    ]
    print("\n".join(lines) or "words: fine")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

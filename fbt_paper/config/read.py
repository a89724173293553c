"""The text files of config/, YAML and CSV, as plain values; a ConfigError says what cannot be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from fbt_paper.config.problems import ConfigError, Problem

REFERENCE_COLUMNS = ("row", "column", "value", "source", "status", "note")
PLAIN_WORDS = {
    "found a tab character": "a tab indents this line; indent with blanks",
    "did not find expected ',' or": "the bracket or brace that opens here is not closed",
    "found unexpected end of stream": "the quote that opens here is not closed",
    "found character that cannot start": "a value begins with a tab, @, ` or %; "
    "indent with blanks, put quotes around a text",
    "mapping values are not allowed": "a second colon, or an indentation that does not fit the line above; "
    "put quotes around a text that holds a colon",
    "did not find expected key": "the indentation does not fit the lines above",
    "did not find expected '-'": "the indentation does not fit the lines above",
    "did not find expected node": "a value begins with a bracket or brace that closes; put quotes around it",
    "found undefined alias": "there is no &name in the lines above for this *name; put quotes around a text",
    "could not determine a constructor": "a value begins with !; put quotes around it",
    "but found another document": "a line of --- begins a second document; a file holds one",
}
"""What the parser's errors mean, by how they begin."""

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        # PyYAML keeps the last of two equal keys without a word; a row pasted twice would lose its settings.
        for key_node, _ in node.value:
            problem = _key_problem(key_node, seen)
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _key_problem(node: yaml.Node, seen: Collection[str]) -> str | None:
    """What is wrong with a key: it is no text (a list, a number, `yes`), or it was there before."""
    # `<<` merges another mapping; it has a tag of its own and is no key.
    if node.tag == "tag:yaml.org,2002:merge":
        return None
    # YAML 1.1 reads a key `on` or `no` as true or false: the message would name a key that nobody wrote.
    if node.tag != "tag:yaml.org,2002:str":
        value = f" (given: {node.value})" if isinstance(node, yaml.ScalarNode) else ""
        return f"a key must be text{value}; put quotes around a word that YAML reads as something else"
    if node.value in seen:
        return f"the key '{node.value}' is given twice; keep one"
    return None


def read_yaml(path: Path) -> Any:
    """A YAML file's content; raises ConfigError when it is missing, broken or has a doubled key."""
    file, text = shown(path), _read_text(path)
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        # An open bracket or quote is noticed at the end of the file; where it opens is the context's mark.
        opened = (error.problem or "").startswith(("did not find expected ',' or", "found unexpected end"))
        mark = error.context_mark if opened else error.problem_mark
        line = f"line {mark.line + 1}" if mark else ""
        raise ConfigError([Problem(file, line, _in_plain_words(error))]) from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that does not exist
        message = f"is not YAML ({' '.join(str(error).split())}); put quotes around a text"
        raise ConfigError([Problem(file, "", message)]) from None
    try:
        # YAML can write a list that holds itself; every later walk through it would never end.
        json.dumps(content, default=str)
    except (ValueError, RecursionError):
        message = "a mapping or a list holds itself: an alias (*name) stands inside its own anchor (&name)"
        raise ConfigError([Problem(file, "", message)]) from None
    return content


def _in_plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    return next((text for start, text in PLAIN_WORDS.items() if problem.startswith(start)), problem)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of keys with values."""
    content = read_yaml(path)
    if content is None:
        raise ConfigError([Problem(shown(path), "", "the file is empty; it must hold keys with values")])
    if not isinstance(content, dict):
        raise ConfigError([Problem(shown(path), "", "must be keys with values")])
    return content


def _read_text(path: Path) -> str:
    """A UTF-8 text without the mark that some editors and spreadsheets put at its beginning."""
    try:
        # Spreadsheets save UTF-8 with a mark at the beginning, which would become part of the first key.
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem(shown(path), "", "the file is missing")]) from None
    except OSError as error:
        raise ConfigError([Problem(shown(path), "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text: {error}; save it as UTF-8"
        raise ConfigError([Problem(shown(path), "", message)]) from None


def shown(path: Path) -> str:
    """A config file's name as a reader knows it: from config/ on, even if the folder has another name."""
    if path.parent.name in ("tables", "figures", "scales"):
        return f"config/{path.parent.name}/{path.name}"
    return f"config/{path.name}"


def files_in(folder: Path, ending: str) -> list[Path]:
    """The files of a folder with this ending, sorted; an editor's hidden ones are left out."""
    # Sorted: the order of a folder differs between file systems, and the tables' order decides that of runs.
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))


# ---------------------------------------------------------------- printed numbers


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .reference.csv with their line numbers; fields by the names of the first line.

    Takes what spreadsheets write: semicolons or tabs between the fields, with decimal commas; empty lines.
    Raises ConfigError for a file that is no such table.
    """
    text = _read_text(path)
    first = text.partition("\n")[0]
    # The first line decides: names of columns hold no separator, remarks in later lines do.
    delimiter = max(",;\t", key=first.count)
    # Strict: else an open quote swallows the rest of the file as one field.
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        # The reader's own line number: a quoted field may span lines.
        filled = [(lines.line_num, line) for line in lines if any(field.strip() for field in line)]
    except csv.Error as error:
        raise ConfigError([Problem(shown(path), f"line {lines.line_num}", f"is not CSV: {error}")]) from None
    if not filled:
        return
    names = [name.strip() for name in filled[0][1]]
    _check_header(path, names)
    for number, line in filled[1:]:
        # More values than names are a comma too much; fewer are fields left empty at the end.
        if len(line) > len(names):
            message = f"has more values than the first line has names ({len(names)})"
            hint = "quote a text that holds a comma, write a number with a point"
            raise ConfigError([Problem(shown(path), f"line {number}", f"{message}; {hint}")])
        row: dict[str, Any] = {name: field for name, field in zip(names, line, strict=False) if name}
        if "value" in row:
            row["value"] = _number(row["value"], decimal_comma=delimiter != ",")
        yield number, row


def _check_header(path: Path, names: list[str]) -> None:
    missing = [name for name in REFERENCE_COLUMNS[:5] if name not in names]
    if missing:
        expected = ",".join(REFERENCE_COLUMNS)
        message = f"must name the columns ({expected}); missing: {', '.join(missing)}"
        raise ConfigError([Problem(shown(path), "line 1", message)])


def _number(text: str, decimal_comma: bool) -> float | str:
    """The number that a field holds; the text itself if it holds none."""
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        # Left as it is: its record reports it with file and line, like every other wrong value.
        return text

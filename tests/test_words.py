"""The checker of words finds what it should, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import check_words


def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> list[str]:
    """What the checker says of a file with this name and text."""
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return list(check_words.problems(path))


@pytest.mark.parametrize(
    "line",
    [
        "# the place of a worker",
        "# told beside a wrong key",
        "# this mends it",
        "def leave_if_voted(): ...",
        "for one in runs: ...",
        "def name(given): ...",
        "class Record: ...",
        "Placed = 1",
    ],
)
def test_a_word_of_the_dialect_is_found_with_its_line(line, tmp_path, monkeypatch):
    (problem,) = problems(tmp_path, monkeypatch, "fbt_core/file.py", f"import os\n{line}\n")
    assert problem.startswith("fbt_core/file.py:2: ")


@pytest.mark.parametrize(
    "line",
    [
        "# in place, to three decimal places; it takes place",
        "# a placeholder, a replacement, an entry, a record",
        "class TrainingRecord: ...",
        "# the journal's own word: told  # words: allow",
        "# the head of a network",
        "one.found = 1",
        "found = 1  # words: allow",
    ],
)
def test_ordinary_english_is_let_through(line, tmp_path, monkeypatch):
    assert problems(tmp_path, monkeypatch, "fbt_core/file.py", f"{line}\n") == []


def test_head_is_a_classifier_everywhere_but_beside_snakemake(tmp_path, monkeypatch):
    assert problems(tmp_path, monkeypatch, "plugin/src/file.py", "# the head waits\n")
    assert not problems(tmp_path, monkeypatch, "fbt_core/file.py", "# the head waits\n")


def test_a_long_ternary_is_found_in_shipped_code(tmp_path, monkeypatch):
    short = "x = 1 if y else 2\n"
    long = f"x = (\n    1\n    if y\n    else 2\n)\nx = {'a' * 70} if y else 2\n"
    assert problems(tmp_path, monkeypatch, "fbt_core/file.py", short) == []
    lines = problems(tmp_path, monkeypatch, "fbt_core/file.py", long)
    assert [problem.split(": ")[0] for problem in lines] == ["fbt_core/file.py:2", "fbt_core/file.py:6"]
    assert problems(tmp_path, monkeypatch, "tests/test_file.py", long) == []


def test_exit_code_and_chosen_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("good.md").write_text("A fix.\n")
    Path("bad.md").write_text("He tells.\n")
    monkeypatch.setattr(check_words, "tracked", lambda: [Path("good.md"), Path("bad.md")])
    assert check_words.main(["good.md"]) == 0
    assert check_words.main([]) == 1
    assert "bad.md:1: 'tells': say report, error, label" in capsys.readouterr().out

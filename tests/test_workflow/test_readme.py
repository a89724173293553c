"""The commands of README and guides, as written: targets exist, dry runs plan, `fbt` answers."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TEXTS = re.compile(r"<text[^>]*>([^<]*)<")
GUIDES = ["README.md", "docs/daily-use.md", "docs/cluster.md", "docs/workstation.md"]
BLOCK = re.compile(r"```console\n(.*?)```", re.S)
LINES = [
    line.removeprefix("$ ").split("#")[0].strip()
    for name in GUIDES
    for block in BLOCK.findall((ROOT / name).read_text())
    for line in block.splitlines()
    if line
]
COMMANDS = list(dict.fromkeys(LINES))


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def as_tested(command: str) -> list[str]:
    """The command in a form that trains nothing and ends: dry runs, one look at the status, help for RUN."""
    words = shlex.split(command)
    program, words = words[0], words[1:]
    if program == "make":
        return ["make", "--dry-run", *words]
    if program == "snakemake":
        return [sys.executable, "-m", "snakemake", "--quiet", "all", "-n", *words]
    assert program == "fbt", f"no test knows how to try {command!r}"
    # `fbt run` trains, and a table needs results; tests of their own try both.
    if "RUN" in words or words[:1] in (["run"], ["table"]):
        words = [words[0], "--help"]
    return [sys.executable, "-m", "fbt_paper.cli", *(word for word in words if word != "--watch")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_guide_works(command):
    done = run(as_tested(command))
    failed_runs = command.startswith("fbt status") and done.returncode == 1
    assert done.returncode == 0 or failed_runs, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_first_screen_holds_the_two_commands():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert README.index("$ make demo") < 1500
    assert len(README.splitlines()) <= 60, "what is long has a page of its own in docs/"


def test_the_picture_of_the_idea_is_what_the_script_draws(tmp_path):
    """It shows the fused model that the engine builds: the student's S1-S3, L2G, the teacher's S4."""
    from scripts.draw_idea import draw, fused_parts

    draw(tmp_path / "fbt.svg")
    committed = TEXTS.findall((ROOT / "docs/pictures/fbt.svg").read_text())
    assert TEXTS.findall((tmp_path / "fbt.svg").read_text()) == committed
    assert README.index("docs/pictures/fbt.svg") < README.index("$ make demo")
    assert fused_parts("cnn", "msa")[2:5] == [("S3", "student"), ("L2G", "L2G"), ("S4", "teacher")]
    assert fused_parts("mlp", "cnn")[2:5] == [("S3", "teacher"), ("L2G", "L2G"), ("S4", "student")]


def defined(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a file, as `name` or `Class.name`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_tour_names_what_exists():
    text = (ROOT / "docs/tour.md").read_text()
    plugin = ROOT / "plugin/src/snakemake_executor_plugin_submitit"
    named = re.findall(r"`([\w/.-]+\.(?:py|smk|yaml))(?::([\w.]+))?`", text)
    assert len(named) > 30
    for file, name in named:
        path = ROOT / file if "/" in file else plugin / file
        assert path.is_file(), f"docs/tour.md names {file}, which is not there"
        assert not name or name in defined(path), f"docs/tour.md names {file}:{name}, which is not there"

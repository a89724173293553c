"""The README's commands, as written: targets exist, dry runs plan, `fbt` answers, linked files are there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.S)
COMMANDS = [
    line.removeprefix("$ ").split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line
]


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
    if "RUN" in words:
        words = [words[0], "--help"]
    return [sys.executable, "-m", "fbt_paper.cli", *(word for word in words if word != "--watch")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command):
    done = run(as_tested(command))
    failed_runs = command.startswith("fbt status") and done.returncode == 1
    assert done.returncode == 0 or failed_runs, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_first_screen_holds_the_two_commands():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert README.index("$ make demo") < 1500


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "config/README.md", "docs/figures.md"])
def test_linked_files_exist(name):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert not [link for link in links if not ((ROOT / name).parent / link).exists()]

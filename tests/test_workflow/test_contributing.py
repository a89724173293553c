"""CONTRIBUTING.md followed to the letter in a copy: its code blocks are written, nothing else is touched."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = ("config", "fbt_core", "fbt_paper", "workflow", "tests", "profiles")


def block(heading: str, language: str, number: int = 0) -> str:
    """A code block of a section, as written."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)[number]


class Copy:
    """A copy of the repository, and the commands a contributor runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)

    def python(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self) -> set[str]:
        """Ids of all runs of both scales."""
        program = (
            "from fbt_paper.config import load; from fbt_paper.plan import plan\n"
            "for scale in ('smoke', 'paper'):\n"
            "    for run in plan(load('config', {'scale': scale})).runs: print(scale, run)"
        )
        return set(self.python("-c", program).splitlines())

    def add_row(self, table: str, row: str) -> None:
        path = self.folder / "config" / "tables" / f"{table}.yaml"
        head, columns = path.read_text().split("\ncolumns:")
        path.write_text(f"{head}\n{row.rstrip()}\ncolumns:{columns}")

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("\n" + text)


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "fbt-repro")


def test_a_row_is_one_list_item_and_adds_its_own_runs_only(copy):
    before = copy.runs()
    copy.add_row("table4", block("Add an ablation row", "yaml"))
    added = sorted(copy.runs() - before)
    assert before <= copy.runs()
    assert len(added) == 3 + 1  # three seeds at smoke, one at paper
    assert all("-fitnet-convnext_t-swin_p-" in run for run in added)


def test_a_method_is_one_file_and_its_numbers(copy):
    before = copy.runs()
    (copy.folder / "fbt_core/methods/half_kd.py").write_text(block("Add a method", "python"))
    copy.append("config/methods.yaml", block("Add a method", "yaml"))
    assert copy.runs() == before, "a method that no table names adds no run"
    copy.add_row("table4", "  - {key: half_kd, label: Half KD, method: half_kd}")
    added = copy.runs() - before
    assert len(added) == 3 + 1
    assert all("-half_kd-convnext_t-swin_p-" in run for run in added)


def test_the_method_of_the_text_trains(copy):
    (copy.folder / "fbt_core/methods/half_kd.py").write_text(block("Add a method", "python"))
    copy.append("config/methods.yaml", block("Add a method", "yaml"))
    conformance = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    out = copy.python(*conformance, "tests/test_core/test_methods.py", "-k", "half_kd")
    assert int(re.search(r"(\d+) passed", out).group(1)) >= 9, "the nine family directions"


def test_an_architecture_is_one_entry(copy):
    before = copy.runs()
    copy.append("config/architectures.yaml", block("Add an architecture", "yaml"))
    assert copy.runs() == before
    table = copy.folder / "config/tables/table5.yaml"
    column = "  - {key: swin_t__regnet, label: Swin-T to RegNet, teacher: swin_t, student: regnet_tiny}\n"
    table.write_text(table.read_text().replace("columns:\n", "columns:\n" + column))
    added = copy.runs() - before
    assert len(added) == 2 * 2  # two L2G blocks, two scales
    assert all("-fbt-swin_t-regnet_tiny-" in run for run in added)

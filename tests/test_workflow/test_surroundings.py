"""A whole small workflow unlike on a developer's desk: a difficult path, no locale, a notebook's backend."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_workflow.workflow_copy import ROOT, WorkflowCopy

FOLDER = "it's a thésis"
NOTEBOOK = "module://matplotlib_inline.backend_inline"
"""What a notebook's terminal has in MPLBACKEND. Nothing here can import it."""
COLUMNS = ("swin_t__resnet18", "convnext_t__swin_p")
CLAIMS = """claims:
  - {key: a, where: Table 5, says: one above the other, better: table5/swin_block/*, than: table5/vit_block/*}
"""
SHOWN = (
    "tables/table5.md",
    "tables/table5.tex",
    "comparison.md",
    "results.csv",
    "claims.md",
    "figures/curves_table5.pdf",
    "index.html",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> WorkflowCopy:
    """One pair of Table 5, its curves and a claim, in such a folder; an environment to install into."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("surroundings") / FOLDER)
    for path in [*copy.folder.glob("config/tables/*"), *copy.folder.glob("config/figures/*")]:
        if path.name not in ("table5.yaml", "curves.yaml"):
            path.unlink()
    table = copy.folder / "config/tables/table5.yaml"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not any(column in line for column in COLUMNS)))
    (copy.folder / "config/claims.yaml").write_text(CLAIMS)
    for name in ("Makefile", "pyproject.toml", "plugin/pyproject.toml"):
        (copy.folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, copy.folder / name)
    write_environment(copy.folder / ".venv/bin")
    return copy


def write_environment(bin_folder: Path) -> None:
    """`python`, which only notes what it is asked to install, and `fbt`, the real one."""
    bin_folder.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    commands = {"python": 'echo "$*" >> installed.txt', "fbt": f'exec {python} -m fbt_paper.cli "$@"'}
    for name, command in commands.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (bin_folder / name).chmod(0o755)


def demo(copy: WorkflowCopy) -> str:
    """What `make demo` says; it must succeed. If a `make VENV=...` runs the tests, that is not meant here."""
    kept_out = ("SNAKEMAKE", "LC_", "LANG", "MAKE", "VENV", "PYTHON")
    known = {k: v for k, v in os.environ.items() if not k.startswith(kept_out)}
    surroundings = {"LC_ALL": "C", "MPLBACKEND": NOTEBOOK, "PYTHONPATH": str(copy.folder)}
    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=copy.folder,
        env={**known, **surroundings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    log = copy.folder / "results/smoke/logs/fbt_run.log"
    said = done.stdout + (log.read_text(encoding="utf-8") if log.exists() else "")
    assert done.returncode == 0, said[-5000:]
    return said


@pytest.mark.slow
def test_make_demo_below_a_difficult_path_without_a_locale_and_with_a_notebooks_backend(copy):
    code = f"import importlib; importlib.import_module({NOTEBOOK.removeprefix('module://')!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0
    demo(copy)
    installed = (copy.folder / "installed.txt").read_text().splitlines()
    assert installed[-1] == "-m pip install --quiet -e plugin -e ."
    results = copy.folder / "results/smoke"
    assert [name for name in SHOWN if not (results / name).stat().st_size] == []
    assert json.loads((results / "figures/curves_table5.json").read_text())["table"] == "table5"
    assert len(copy.trained()) == len(set(copy.trained())) == 3

    before = copy.trained()
    assert "Nothing to be done" in demo(copy)
    assert copy.trained() == before
    assert (copy.folder / "installed.txt").read_text().splitlines() == installed

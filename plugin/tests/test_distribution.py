"""What is published: an sdist and a wheel, installed into an environment that has only its dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

pytestmark = pytest.mark.slow


def build(folder: Path, kind: str, into: Path) -> Path:
    """The sdist or the wheel of a source tree."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(into)]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return into / answer.stdout.split()[-1]


def copy_of_the_source(folder: Path) -> Path:
    """Building leaves files behind: not in the clone."""
    source = folder / "source"
    source.mkdir()
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", "."],
        cwd=PLUGIN,
        capture_output=True,
        check=False,
    )
    names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    for name in names or [str(path.relative_to(PLUGIN)) for path in PLUGIN.rglob("*") if path.is_file()]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((PLUGIN / name).read_bytes())
    return source


def test_wheel_from_the_sdist_runs_a_job_in_an_empty_environment(tmp_path: Path) -> None:
    sdist = build(copy_of_the_source(tmp_path), "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "docs/intro.md",
        "docs/further.md",
        "tests/fakes.py",
    ):
        assert (unpacked / name).exists(), name
    wheel = build(unpacked, "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert {"py.typed", "shell_init.sh", "ignore_signals.sh", "executor.py"} <= names
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")})
    site = Path(paths["purelib"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # what an installer does with a wheel of plain Python
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run_a_job(tmp_path / "work", python, site)


def run_a_job(folder: Path, python: Path, site: Path) -> None:
    """Run one rule through the plugin that lies in an environment's site-packages."""
    folder.mkdir()
    (folder / "Snakefile").write_text(
        'rule work:\n    output: "out.txt"\n    shell: "echo $SNAKEMAKE_SUBMITIT_RESTARTS > {output}"\n'
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [python, "-c", "import snakemake_executor_plugin_submitit as plugin; print(plugin.__file__)"]
    answer = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert Path(answer.stdout.strip()).is_relative_to(site)
    command = [
        python,
        "-m",
        "snakemake",
        "--executor",
        "submitit",
        "--jobs",
        "1",
        "--submitit-cluster",
        "local",
    ]
    answer = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert (folder / "out.txt").read_text() == "0\n"

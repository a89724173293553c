"""The engine and the commands need nothing that only Linux has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fbt_core import provenance
from fbt_core.provenance import peak_memory_mb
from tests.test_core.engine_runs import arguments, make_spec, metrics_of, write_images

ROOT = Path(__file__).parents[2]
AS_ON_MACOS = """
import os, pathlib, sys
for name in ("sched_getaffinity", "sched_setaffinity", "waitid", "pidfd_open", "P_PIDFD"):
    if hasattr(os, name):
        delattr(os, name)
read_text = pathlib.Path.read_text
def without_proc(path, *values, **named):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return read_text(path, *values, **named)
pathlib.Path.read_text = without_proc
"""


def as_on_macos(program: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """A Python program whose `main` runs without the names that macOS does not have."""
    code = f"{AS_ON_MACOS}\nfrom {program} import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_trains_without_what_only_linux_has(tmp_path):
    root, spec = write_images(tmp_path / "data"), make_spec(recipe__epochs=1)
    done = as_on_macos("fbt_core.run", arguments(spec, tmp_path / "runs", root, threads=None, workers=1))
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "runs", spec)["peak_memory_mb"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [["status"], ["plan"], ["check-data", "fashion_mnist", "--quick"]])
def test_a_command_works_without_what_only_linux_has(command):
    done = as_on_macos("fbt_paper.cli", command)
    assert done.returncode == 0, done.stderr


def test_peak_memory_is_the_same_number_whatever_the_unit(monkeypatch):
    usage = type("Usage", (), {"ru_maxrss": 3 * 2**20})
    monkeypatch.setattr(provenance.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(provenance.sys, "platform", "darwin")
    assert peak_memory_mb(torch.device("cpu")) == 3.0
    monkeypatch.setattr(provenance.sys, "platform", "linux")
    assert peak_memory_mb(torch.device("cpu")) == 3.0 * 1024

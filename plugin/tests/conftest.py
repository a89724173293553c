"""What the plugin's tests share: a real Slurm, and workflows that run on it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from snakemake_executor_plugin_submitit.job import SnakemakeJob

from cluster import Cluster
from slurm_fixtures import cluster, start_cluster
from workflows import Workflow

__all__ = ["cluster", "make_workflow", "start_cluster"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, where shells ignore Ctrl-C: the programs under test are to heed it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Locks of GPU slots that no other test process on this machine shares.
os.environ["GPU_SLOTS_FOLDER"] = tempfile.mkdtemp(prefix="gpu-slots-")


@pytest.fixture
def make_workflow(tmp_path: Path) -> Iterator[Callable[..., Workflow]]:
    """Make a workflow in a folder of its own."""
    made: list[Workflow] = []

    def make(cluster: Cluster | None = None, **options: Any) -> Workflow:
        folder = tmp_path / f"work{len(made)}"
        folder.mkdir()
        made.append(Workflow(folder, cluster, **options))
        return made[-1]

    yield make
    for workflow in made:
        workflow.stop()


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., SnakemakeJob]:
    """A job that runs a shell script instead of an inner Snakemake."""

    def make(script: str, **changes: Any) -> SnakemakeJob:
        path = tmp_path / "script.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "records").mkdir(exist_ok=True)
        options: dict[str, Any] = {
            "cluster": "local", "runtime_s": 60.0, "signal_s": 10.0, "max_timeouts": 1, "gpus": 1,
            "launcher": "", "submitted": time.time(),
        }  # fmt: skip
        return SnakemakeJob(path, tmp_path, tmp_path / "records" / "record.json", **{**options, **changes})

    return make

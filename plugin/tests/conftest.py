"""What the plugin's tests share: a real Slurm, and workflows that run on it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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

"""Fixtures: a real Slurm for each test that asks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import Cluster, missing_programs

__all__ = ["cluster", "require", "start_cluster"]


def require(reason: str | None) -> None:
    """Skip with a clear line where Slurm is not installed; in CI that is a failure."""
    if reason is None:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Start a Slurm with the options of `Cluster`; it is stopped when the test ends."""
    started: list[Cluster] = []

    def start(nodes: int = 1, **options: Any) -> Cluster:
        require(missing_programs(accounting=options.get("accounting", False)))
        started.append(Cluster(tmp_path_factory.mktemp("slurm"), nodes, **options))
        started[-1].start()
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """A Slurm of one node."""
    return start_cluster()

"""Snakemake's own conformance suite for executors, on all three clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import snakemake.common.tests as conformance
from snakemake_executor_plugin_submitit import ExecutorSettings

from cluster import Cluster


class Suite(conformance.TestWorkflowsLocalStorageBase):
    """The suite for one cluster; subclasses say which."""

    cluster_name = "slurm"

    @pytest.fixture(autouse=True)
    def own_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)

    def get_executor(self) -> str:
        return "submitit"

    def get_executor_settings(self) -> Any:
        return ExecutorSettings(cluster=self.cluster_name, poll_seconds=2)


@pytest.mark.slurm
class TestOnSlurm(Suite):
    """Jobs of the suite run on a real Slurm."""

    __test__ = True

    @pytest.fixture(autouse=True)
    def use_slurm(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))


@pytest.mark.slow
class TestOnLocal(Suite):
    """Jobs of the suite are processes of this machine."""

    __test__ = True
    cluster_name = "local"


@pytest.mark.slow
class TestOnDebug(Suite):
    """Jobs of the suite run one after the other inside Snakemake."""

    __test__ = True
    cluster_name = "debug"

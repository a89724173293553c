"""The plugin's real Slurm, for the workflow's own tests."""

from slurm_fixtures import cluster, start_cluster

__all__ = ["cluster", "start_cluster"]

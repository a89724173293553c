"""`snakemake --profile workstation`, word for word: several GPUs, no Slurm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fbt_paper.config.load import load
from fbt_paper.plan.runs import plan
from tests.test_workflow.test_slurm_profile import call, clone

__all__ = ["clone"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workstation(clone: Path) -> Path:
    """A clone with the profile's link."""
    (clone / "workstation").symlink_to(os.readlink(ROOT / "workstation"))
    return clone


def test_the_profile_is_for_the_paper_and_gives_each_training_gpus(workstation: Path) -> None:
    text = call(workstation, "--profile", "workstation", "-n", "results/paper/tables/table5.md")
    blocks = [block for block in text.split("\n[") if "\nrule train:" in block]
    assert blocks
    assert all("gpu=1," in block and "mem_mb=24000" in block for block in blocks)


def test_the_link_and_the_profile_agree_with_the_one_of_slurm() -> None:
    """Whoever edits one table of resources finds the other written in the same way."""
    import yaml

    tables = {
        name: yaml.safe_load((ROOT / "profiles" / name / "resources.yaml").read_text())["training_resources"]
        for name in ("slurm", "workstation")
    }
    assert os.readlink(ROOT / "workstation") == "profiles/workstation"
    assert tables["slurm"]["datasets"].keys() == tables["workstation"]["datasets"].keys()


@pytest.mark.slow
def test_a_training_runs_on_a_gpu_of_its_own(workstation: Path, tmp_path: Path) -> None:
    """Fake GPUs: the training itself uses the CPU, and records which slot it held."""
    import json

    shutil.copytree(ROOT / "plugin", workstation / "plugin", ignore=shutil.ignore_patterns("__pycache__"))
    run = next(run for run in plan(load()).runs.values() if run.teacher is None)
    names = ",".join(f"fake-{os.getpid()}-workstation-{number}" for number in range(2))
    target = f"results/smoke/runs/{run.id}/metrics.json"
    call(workstation, target, "--profile", "workstation", "--config", "scale=smoke", "--submitit-gpus", names)
    execution = json.loads((workstation / target).read_text())["execution"]
    assert execution["cuda_visible_devices"] in names.split(",")
    assert execution["gpus_reserved"] == 1

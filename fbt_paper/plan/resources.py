"""What one training gets on a cluster: the profile's table by data set and family."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from fbt_core.spec import Key, RunSpec, Strict
from fbt_paper.config.load import read_yaml, validate
from fbt_paper.config.problems import ConfigError, unknown
from fbt_paper.config.records import Pack

TABLE_KEY = "training_resources"
TABLE_FILE = "resources.yaml"
MEMORY_SHARE = 0.1
"""Main memory that each further run of a pack takes, as a share of what it would get alone (assumed)."""
SIGNAL_SECONDS, SAVING_SECONDS = 90, 30
"""How long before its time limit a pack is asked to save: a step, and each run's checkpoint (assumed)."""


class Amount(Strict):
    """GPUs, hours until the job's time limit, GB of memory and CPUs of one training."""

    gpus: int = Field(ge=0)
    hours: float = Field(gt=0)
    memory: float = Field(gt=0, description="GB")
    cpus: int = Field(ge=1)
    pack: Pack | None = Field(default=None, description="instead of config.yaml's `execution.pack`")

    def as_resources(self) -> dict[str, int]:
        """The amount as Snakemake's resources: MB and minutes."""
        return {
            "gpu": self.gpus,
            "mem_mb": round(1000 * self.memory),
            # Slurm takes 0 minutes for no limit at all.
            "runtime": max(1, round(60 * self.hours)),
            "cpus": self.cpus,
        }


class FamilyAmounts(Strict):
    """What trainings on one data set get, by the family of the student."""

    cnn: Amount
    msa: Amount
    mlp: Amount


class TrainingResources(Strict):
    """profiles/<name>/resources.yaml: data set -> family of the student -> what one training gets."""

    datasets: dict[Key, FamilyAmounts]
    otherwise: Amount = Field(description="for data sets without lines of their own")

    gpu_memory: float | None = Field(
        default=None, gt=0, description="GB of one GPU; packs of `auto` are filled up to a share of it"
    )

    def amount(self, spec: RunSpec) -> Amount:
        """What the training of a run gets."""
        families = self.datasets.get(spec.dataset.name)
        amount: Amount = getattr(families, spec.student.family) if families else self.otherwise
        return amount

    def of(self, spec: RunSpec) -> dict[str, int]:
        """Snakemake's resources of a run."""
        return self.amount(spec).as_resources()

    def of_pack(self, specs: Sequence[RunSpec]) -> dict[str, int]:
        """Snakemake's resources of a pack: those of its largest run, memory and time to save for all."""
        each = [self.of(spec) for spec in specs]
        most = {name: max(resources[name] for resources in each) for name in each[0]}
        # They share loaders and libraries, and keep a copy of their own of what they save (docs/packs.md).
        most["mem_mb"] += round(MEMORY_SHARE * sum(sorted(resources["mem_mb"] for resources in each)[:-1]))
        # At a time limit the runs save one after the other, and then make room together.
        most["signal_seconds"] = SIGNAL_SECONDS + SAVING_SECONDS * len(specs)
        return most


def check_resources(content: Any, datasets: Collection[str], file: str = TABLE_FILE) -> TrainingResources:
    """The table, or a ConfigError with all its mistakes; every data set in it must be one of these."""
    # Data sets are looked up here, not by their type: the job of a training reads the table without config/.
    table = validate(TrainingResources, content, file, [TABLE_KEY])
    problems = [
        unknown(file, [TABLE_KEY, "datasets", name], "dataset", name, datasets)
        for name in table.datasets
        if name not in datasets
    ]
    if problems:
        raise ConfigError(problems)
    return table


def read_resources(profile: Path) -> dict[str, Any]:
    """The settings in a profile's resources.yaml, as Snakemake hands them to the workflow; {} without one."""
    path = profile / TABLE_FILE
    if not path.exists():
        return {}
    return read_yaml(path) or {}

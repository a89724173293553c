"""Runs as files, each with its frozen spec: all that the job of one training needs.

Before its first job starts, the main Snakemake process writes each run's spec to results/<scale>/specs/, and
beside that folder how trainings are executed and what they get. A training's own job reads these files and
nothing of config/: YAML that changes while the job waits changes neither what it trains nor whether it can.
A later call writes the two common files again; the GPUs that a queued job trains on are those it was given.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fbt_core.files import make_folder, write_bytes, write_json
from fbt_core.spec import ExecutionSettings, RunSpec, check_frozen
from fbt_paper.config.problems import ConfigError, Problem
from fbt_paper.plan.packs import PackFiles
from fbt_paper.plan.resources import TrainingResources

M = TypeVar("M", bound=BaseModel)
RUN_RESULTS = ("metrics.json", "weights.safetensors")


class Runs:
    """The runs of one scale as files under results/<scale>/, and what their trainings get."""

    dag: Callable[[], Any] = staticmethod(lambda: None)
    """Snakemake's jobs, if it has planned them; set by the rules."""

    def __init__(self, scale: str, execution: ExecutionSettings, resources: TrainingResources) -> None:
        self.scale, self.execution, self.resources = scale, execution, resources
        self.results = f"results/{scale}"
        self.runs = f"{self.results}/runs"
        self.specs = f"{self.results}/specs"
        self.settings_file = f"{self.results}/execution.json"
        self.resources_file = f"{self.results}/resources.json"
        self.packs = PackFiles(f"{self.results}/packs")
        self.given = dict[str, int]()  # what this process's job has been given, whatever the files say now

    def spec(self, run: str) -> RunSpec:
        """A run's frozen spec; raises ConfigError if its file is missing or holds another run."""
        path = Path(self.specs, f"{run}.json")
        spec = _read(RunSpec, path)
        check_frozen(spec, path)
        return spec

    # ------------------------------------------------------------ commands

    @property
    def python(self) -> str:
        """The interpreter that runs Snakemake, quoted for a shell."""
        return shell_quoted(sys.executable)

    @property
    def settings(self) -> str:
        """ExecutionSettings as quoted JSON. Not a param of a rule: a change of them retrains nothing."""
        return shell_quoted(self.execution.model_dump_json(exclude_defaults=True))

    @property
    def threads(self) -> int:
        """CPU threads of one training: the scale's, else enough for the loader processes."""
        return threads_of(self.execution)

    def resources_of(self, run: str) -> dict[str, int]:
        """What a run's training gets, by its data set and the family of its student."""
        return self.resources.of(self.spec(run)) | self.given

    # ------------------------------------------------------------ files

    def run_files(self, run: str) -> list[str]:
        """What a finished run publishes."""
        return [f"{self.runs}/{run}/{name}" for name in RUN_RESULTS]

    def needed_files(self, run: str) -> list[str]:
        """What a run waits for: results of its teacher's and its earlier phase's runs, timm's weights."""
        spec = self.spec(run)
        # All files of a needed run, not its metrics alone: the weights are what this run reads.
        results = [file for needed in spec.needed_runs() for file in self.run_files(needed)]
        return [*results, *(f"{self.results}/weights/{tag}.txt" for tag in timm_tags([spec]))]

    # ------------------------------------------------------------ packs

    def members(self, pack: str) -> tuple[str, ...]:
        """The runs that a pack trains, as they were when its job was submitted."""
        return self.packs.runs(pack)

    @property
    def published(self) -> str:
        """A wildcard constraint that fits the runs that are published, and those alone."""
        return "none"  # the job of a training trains

    def marker_of(self, run: str) -> list[str]:
        """What a run that is published waits for: the marker of its pack."""
        return []

    def specs_of_pack(self, pack: str) -> str:
        """The frozen specs of a pack's runs, as arguments of the engine."""
        return " ".join(f"--spec {self.specs}/{run}.json" for run in self.members(pack))

    def needed_by_pack(self, pack: str) -> list[str]:
        """What a pack waits for: all that its runs need."""
        return list(dict.fromkeys(file for run in self.members(pack) for file in self.needed_files(run)))

    def resources_of_pack(self, pack: str) -> dict[str, int]:
        """What the job of a pack gets."""
        return self.resources.of_pack([self.spec(run) for run in self.members(pack)]) | self.given

    # ------------------------------------------------------------ specs

    def spec_json(self, run: str) -> str:
        """A run's spec without unset fields, so that a new one retrains nothing: what Snakemake compares."""
        content = self.spec(run).model_dump(mode="json", exclude_defaults=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def freeze(self, specs: Iterable[RunSpec]) -> None:
        """Write these specs, each once under its id, and what is common to all trainings."""
        make_folder(Path(self.specs))
        for spec in specs:
            path = Path(self.specs, f"{spec.id}.json")
            content = json.dumps(spec.model_dump(mode="json"), indent=1) + "\n"
            if not path.exists() or path.read_text() != content:
                write_bytes(path, content.encode())
        write_json(Path(self.settings_file), self.execution.model_dump(mode="json"))
        write_json(Path(self.resources_file), self.resources.model_dump(mode="json"))


class Members:
    """The runs of a pack as a text that is made when it is read.

    Snakemake makes a job's params before it knows which jobs the target needs, and a dry run makes them once.
    """

    def __init__(self, runs: Runs, pack: str) -> None:
        self.runs, self.pack = runs, pack

    def __str__(self) -> str:
        return " ".join(self.runs.members(self.pack))

    __repr__ = __str__


def threads_of(execution: ExecutionSettings) -> int:
    """CPU threads of one training: those set, else enough for the loader processes."""
    return execution.threads or max(4, execution.workers)


def target_jobs(arguments: Sequence[str]) -> list[str]:
    """The jobs, such as `train:run=...`, that these arguments of a Snakemake process name; without, none."""
    if "--target-jobs" not in arguments:
        return []
    after = arguments[list(arguments).index("--target-jobs") + 1 :]
    # The option takes several jobs and ends at the next option.
    return list(itertools.takewhile(lambda word: not word.startswith("-"), after))


def is_training_job(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of a Snakemake process that is a training's or a pack's job on a node.

    Rules are read before Snakemake says which job it is for, so its command line is asked:
    `--target-jobs train:run=... --allowed-rules ... --mode remote`.
    """
    targets = target_jobs(arguments)
    # A group of jobs may hold other rules as well, and those need the whole plan.
    return bool(targets) and all(target.startswith(("train:", "pack:")) for target in targets)


def runs_of_job(
    scale: str, arguments: Sequence[str] = (), environment: Mapping[str, str] = MappingProxyType({})
) -> Runs:
    """The runs as the job of a training sees them: frozen specs, settings and resources, and its own GPUs."""
    results = Path(f"results/{scale}")
    # From files, not from config/: YAML that has changed since must not reach a job that waited.
    execution = _read(ExecutionSettings, results / "execution.json")
    runs = Runs(scale, execution, _read(TrainingResources, results / "resources.json"))
    # A group's GPUs are the sum of its trainings', so only a job of one training knows its own.
    gpus = environment.get("SNAKEMAKE_SUBMITIT_GPUS", "")
    if gpus.isdigit() and len(target_jobs(arguments)) == 1:
        runs.given["gpu"] = int(gpus)
    return runs


def _read(model: type[M], path: Path) -> M:
    try:
        return model.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        message = f"cannot be read ({error}); start the workflow again, which writes it"
        raise ConfigError([Problem(str(path), "", message)]) from None


def timm_tags(specs: Iterable[RunSpec]) -> list[str]:
    """Tags of the timm weights that these runs read, each once."""
    networks = [network for spec in specs for network in (spec.student, spec.teacher) if network]
    tags = {n.weights.removeprefix("timm:") for n in networks if n.weights.startswith("timm:")}
    return sorted(tags)


def shell_quoted(text: str) -> str:
    """Quoted for a shell, and for Snakemake's own formatting of braces."""
    return shlex.quote(text).replace("{", "{{").replace("}", "}}")

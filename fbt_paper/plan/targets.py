"""What the Snakefile asks: the plan as files, and the settings that go into commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fbt_core.errors import UserError
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_paper.config.data_roots import find_root
from fbt_paper.config.load import CONFIG_FOLDER, Config, ConfigError, Problem, load, read_yaml
from fbt_paper.config.records import CostTable
from fbt_paper.plan.runs import Plan, plan
from fbt_paper.plan.shown import digest, renderer, table_shows

RUN_RESULTS = ("metrics.json", "weights.safetensors")
TABLE_KINDS = ("csv", "md", "tex")


class Flow:
    """The plan of one scale, seen as files under results/<scale>/."""

    def __init__(self, settings: Mapping[str, Any] | None = None, folder: Path = CONFIG_FOLDER) -> None:
        self.given = changed_settings(settings or {}, folder)
        self.config: Config = load(folder, self.given)
        self.plan: Plan = plan(self.config)
        self.scale = self.plan.scale
        self.results = f"results/{self.scale}"
        self.runs = f"{self.results}/runs"

    # ------------------------------------------------------------ commands

    @property
    def python(self) -> str:
        """The interpreter that runs Snakemake, quoted for a shell."""
        return _shell(sys.executable)

    @property
    def fbt(self) -> str:
        """The `fbt` command with the settings given to Snakemake."""
        changes = _shell(json.dumps(self.given, sort_keys=True))
        return (
            f"{self.python} -m fbt_paper.cli --given {changes}"
            if self.given
            else f"{self.python} -m fbt_paper.cli"
        )

    @property
    def settings(self) -> str:
        """ExecutionSettings as quoted JSON. Not a param of the rule: a change of them retrains nothing."""
        return _shell(execution_settings(self.config).model_dump_json(exclude_defaults=True))

    @property
    def threads(self) -> int:
        """CPU threads of one training: the scale's, else enough for the loader processes."""
        return execution_settings(self.config).threads or max(4, self.config.main.execution.workers)

    @property
    def training_resources(self) -> dict[str, int]:
        """Memory (MB), time limit (minutes) and GPUs of one training; a profile may set others."""
        trainings = self.config.scale.trainings
        on_cpu = trainings.cpu or self.config.main.execution.device == "cpu"
        return {"mem_mb": trainings.memory_mb, "runtime": trainings.minutes, "gpu": 0 if on_cpu else 1}

    # ------------------------------------------------------------ files

    def run_files(self, run: str) -> list[str]:
        """What a finished run publishes."""
        return [f"{self.runs}/{run}/{name}" for name in RUN_RESULTS]

    def needed_files(self, run: str) -> list[str]:
        """What a run waits for: results of its teacher's and its earlier phase's runs, timm's weights."""
        spec = self.spec(run)
        results = [file for needed in spec.needed_runs() for file in self.run_files(needed)]
        return [*results, *(f"{self.results}/weights/{tag}.txt" for tag in timm_tags([spec]))]

    def check_data(self, jobs: Iterable[Any]) -> None:
        """Raise ConfigError, naming the settings to fill in, where jobs about to train lack their dataset."""
        runs = [job.wildcards.run for job in jobs if job.rule.name == "train"]
        problems: list[Problem] = []
        for dataset in dict.fromkeys(self.spec(run).dataset.name for run in runs):
            try:
                find_root(self.config, dataset)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def spec(self, run: str) -> RunSpec:
        """A run's spec; an unknown id is reported with the nearest."""
        if run not in self.plan.runs:
            raise ConfigError(
                [Problem(self.runs, run, "no table needs this run; `fbt plan --runs` lists the runs")]
            )
        return self.plan.runs[run]

    def spec_json(self, run: str) -> str:
        """A run's spec as the engine reads it; without unset fields, so that a new one retrains nothing."""
        content = self.spec(run).model_dump(mode="json", exclude_defaults=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def results_of(self, tables: Iterable[str], needed: bool = False) -> list[str]:
        """Results that these tables show; with `needed` those of teachers and earlier phases as well."""
        for table in tables:
            if table not in self.plan.tables:
                raise UserError(f"there is no table '{table}'", given=table, choices=self.plan.tables)
        runs = [run for table in tables for run in self.plan.tables[table].runs]
        counted = [table for table in tables if self.plan.tables[table].kind == "cost"]
        chosen = self.plan.needed(runs) if needed else dict.fromkeys(runs)
        files = [f"{self.runs}/{run}/metrics.json" for run in chosen]
        return [*files, *(f"{self.results}/costs/{table}.json" for table in counted)]

    def counted(self, table: str) -> str:
        """A digest of what a cost table's counts follow from: its pairs, their networks, size and blocks."""
        entry = self.config.tables[table]
        if not isinstance(entry, CostTable):
            raise UserError(f"'{table}' is no table of costs")
        pairs = [(pair.key, pair.teacher, pair.student) for pair in entry.rows]
        names = sorted({name for _, *networks in pairs for name in networks})
        networks = [(name, self.config.architectures[name]) for name in names]
        settings = (entry.image_size, entry.classes, entry.blocks)
        return digest(pairs, settings, [(name, n.family, n.create, n.options) for name, n in networks])

    def shows(self, tables: Iterable[str]) -> str:
        """A digest of everything that these tables show besides their results."""
        return digest(renderer("tables"), [table_shows(self.config, self.plan, table) for table in tables])

    def table_files(self, tables: Iterable[str]) -> list[str]:
        """CSV, Markdown and LaTeX of these tables."""
        return [f"{self.results}/tables/{table}.{kind}" for table in tables for kind in TABLE_KINDS]

    def compared(self, name: str) -> tuple[str, ...]:
        """Keys of the tables that a comparison file shows."""
        return self.plan.target("grid") if name == "comparison_grid" else self.plan.all_tables

    @property
    def tables_target(self) -> list[str]:
        """Files of `snakemake tables`: the tables of `all`, their comparison and the results they show."""
        tables, folder = self.plan.all_tables, self.results
        files = [*self.table_files(tables), f"{folder}/comparison.md", f"{folder}/results.csv"]
        return [*files, *self.results_of(tables)]

    @property
    def grid_target(self) -> list[str]:
        """Files of `snakemake grid`."""
        tables = self.plan.target("grid")
        return [*self.table_files(tables), f"{self.results}/comparison_grid.md", *self.results_of(tables)]


def timm_tags(specs: Iterable[RunSpec]) -> list[str]:
    """Tags of the timm weights that these runs read, each once."""
    networks = (network for spec in specs for network in (spec.student, spec.teacher) if network)
    tags = {n.weights.removeprefix("timm:") for n in networks if n.weights.startswith("timm:")}
    return sorted(tags)


def changed_settings(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that differ from config/config.yaml; Snakemake hands over all of them."""
    stated = read_yaml(folder / "config.yaml") or {}
    return {k: _retyped(value) for k, value in settings.items() if k not in stated or stated[k] != value}


def _retyped(value: Any) -> Any:
    """Numbers, booleans and null inside a list or mapping, which Snakemake's --config leaves as text."""
    if isinstance(value, Mapping):
        return {key: _scalar(_retyped(inner)) for key, inner in value.items()}
    return [_scalar(_retyped(inner)) for inner in value] if isinstance(value, list) else value


def _scalar(value: Any) -> Any:
    parsed = yaml.safe_load(value) if isinstance(value, str) else value
    return parsed if parsed is None or isinstance(parsed, bool | int | float) else value


def execution_settings(config: Config) -> ExecutionSettings:
    """How the engine executes runs: config.yaml's section, the scale's, data roots, weight files."""
    main, trainings = config.main, config.scale.trainings
    files = [weights for dataset in main.teacher_files.values() for weights in dataset.values()]
    execution = main.execution.model_dump()
    if trainings.workers is not None:
        execution["workers"] = trainings.workers
    return ExecutionSettings(
        **execution,
        allow_cpu=trainings.cpu,
        threads=trainings.threads,
        data_roots={name: root for name, root in main.data_roots.items() if root},
        weight_files={weights.sha256: weights.path for weights in files},
    )


def _shell(text: str) -> str:
    """Quoted for a shell, and for Snakemake's own formatting of braces."""
    return shlex.quote(text).replace("{", "{{").replace("}", "}}")

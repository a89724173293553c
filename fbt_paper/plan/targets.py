"""What the Snakefile asks: the plan as files, and the settings that go into commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_text
from fbt_core.spec import ExecutionSettings, RunSpec, TeacherFacts
from fbt_paper.config.claims import load_claims
from fbt_paper.config.data_roots import find_root
from fbt_paper.config.load import CONFIG_FOLDER, Config, load, read_yaml
from fbt_paper.config.problems import Collector, ConfigError, Problem
from fbt_paper.config.records import CostTable, Pack
from fbt_paper.plan.bill import read_parameters
from fbt_paper.plan.frozen import Runs, shell_quoted, threads_of
from fbt_paper.plan.names import run_names
from fbt_paper.plan.on_disk import awaited, outdated
from fbt_paper.plan.pack_memory import fits_memory, state_gb
from fbt_paper.plan.packs import JOURNAL, Packing, find_packing
from fbt_paper.plan.resources import TABLE_FILE, TABLE_KEY, Amount, TrainingResources, check_resources
from fbt_paper.plan.runs import Plan, plan, runs_of_claim
from fbt_paper.plan.shown import digest, renderer, table_shows

TABLE_KINDS = ("csv", "md", "tex")


class Flow(Runs):
    """The plan of one scale, seen as files under results/<scale>/; `settings` are Snakemake's config."""

    def __init__(self, settings: Mapping[str, Any] | None = None, folder: Path = CONFIG_FOLDER) -> None:
        settings = dict(settings or {})
        resources = settings.pop(TABLE_KEY, None)
        self.changes = changed_settings(settings, folder)
        self.config: Config = load(folder, self.changes)
        self.plan: Plan = plan(self.config)
        if resources is None:
            table = TrainingResources(datasets={}, otherwise=usual_amount(self.config))
        else:
            table = check_resources(resources, self.config.datasets)
        super().__init__(self.plan.scale, execution_settings(self.config), table)
        self._submitted: dict[str, tuple[str, ...]] = {}

    @property
    def fbt(self) -> str:
        """The `fbt` command with the settings given to Snakemake."""
        command = f"{self.python} -m fbt_paper.cli"
        if not self.changes:
            return command
        return f"{command} --given {shell_quoted(json.dumps(self.changes, sort_keys=True))}"

    @property
    def training_resources(self) -> dict[str, int]:
        """What a job gets that is no training but runs networks as one does; a profile may set others."""
        amount = usual_amount(self.config).as_resources()
        return {name: amount[name] for name in ("mem_mb", "runtime", "gpu")}

    def spec(self, run: str) -> RunSpec:
        """A run's spec; an unknown id is an error."""
        if run not in self.plan.runs:
            message = "no table needs this run; `fbt plan --runs` lists the runs"
            raise ConfigError([Problem(self.runs, run, message)])
        return self.plan.runs[run]

    # ------------------------------------------------------------ before the first job

    def prepare(self, jobs: Iterable[Any]) -> None:
        """Refuse what no job could train (ConfigError), then freeze the specs of all runs about to train.

        From here on the packs of these jobs are what the job on a node will find: they are written down.
        """
        jobs = list(jobs)
        runs = [job.wildcards.run for job in jobs if job.rule.name in ("train", "publish")]
        self.check_data(runs)
        self.check_weights_files(runs)
        self.freeze(self.plan.runs[run] for run in self.plan.needed(runs))
        # Names of jobs on a cluster: twelve runs of a table may differ in nothing else but their hash.
        make_folder(JOURNAL)
        write_text(JOURNAL / "names.json", json.dumps(run_names(self.plan), indent=1) + "\n")
        packs = [job.wildcards.pack for job in jobs if job.rule.name == "pack"]
        self._submitted = {pack: self.members(pack) for pack in packs}
        for pack in self._submitted.keys() - self.packing.running:
            self.packs.record(pack, self._submitted[pack])

    def check_data(self, runs: Iterable[str]) -> None:
        """Raise ConfigError, naming the settings to fill in, if runs lack their dataset."""
        collect = Collector()
        for dataset in dict.fromkeys(self.spec(run).dataset.name for run in runs):
            collect.try_(find_root, self.config, dataset)
        collect.finish()

    def check_weights_files(self, runs: Iterable[str]) -> None:
        """Raise ConfigError if a file of `teacher_files` that runs read is missing, changed or refused."""
        specs = [self.spec(run) for run in runs]
        weights = [network.weights for spec in specs for network in (spec.teacher, spec.student) if network]
        named = dict.fromkeys(name.removeprefix("file:") for name in weights if name.startswith("file:"))
        if not named:
            return
        files = [f"{sha256}={self.execution.weight_files[sha256]}" for sha256 in named]
        # A process of its own: fbt_paper never imports torch.
        command = [sys.executable, "-m", "fbt_core.weights", "check", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            faults = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
            raise ConfigError(Problem("config/config.yaml", "teacher_files", fault) for fault in faults)

    # ------------------------------------------------------------ packs

    @cached_property
    def packing(self) -> Packing:
        """Which runs are trained together, from what is on disk when this is asked first."""
        first = self.plan.needed(
            run for table in self.plan.all_tables for run in self.plan.tables[table].runs
        )
        # Runs that `snakemake` trains without a target come first: a pack of theirs has no others in it.
        order = {run: self.plan.runs[run] for run in (*first, *self.plan.runs)}
        return find_packing(order, self.packs, Path(self.runs), self.kind, self.fits)

    def kind(self, spec: RunSpec) -> object:
        """What runs of a pack have in common beside what they learn from: their GPUs, their number."""
        return self.resources.amount(spec).gpus, self.pack_size(spec)

    def pack_size(self, spec: RunSpec) -> Pack:
        """How many runs may train together with this one: what the profile says, else config.yaml."""
        return self.resources.amount(spec).pack or self.config.main.execution.pack

    def fits(self, specs: Sequence[RunSpec]) -> bool:
        """Whether so many runs may train together; raises ConfigError if that cannot be said."""
        size = self.pack_size(specs[0])
        if size != "auto":
            return len(specs) <= size
        # Without a GPU the runs keep all that in main memory.
        amount = self.resources.amount(specs[0])
        memory = self.resources.gpu_memory if amount.gpus else amount.memory
        if memory is None:
            message = "auto needs to know how much memory a GPU has, and no profile says it; state it (GB)"
            raise ConfigError([Problem(f"profile's {TABLE_FILE}", f"{TABLE_KEY}.gpu_memory", message)])
        return fits_memory([self.state_gb(spec) for spec in specs], memory)

    def state_gb(self, spec: RunSpec) -> float | None:
        """GB that a run keeps on each of its GPUs from step to step; None if that was not counted."""
        gpus, facts = self.resources.amount(spec).gpus, self.config.methods[spec.method.name]
        return state_gb(spec, gpus, facts, self._parameters)

    @cached_property
    def _parameters(self) -> dict[str, int]:
        return read_parameters()

    def members(self, pack: str) -> tuple[str, ...]:
        """The runs that a pack trains: of those that are planned in it, the ones that the target asks for."""
        if pack in self._submitted:
            return self._submitted[pack]
        planned = self.packing.packs.get(pack) or super().members(pack)
        if (dag := self.dag()) is None or pack in self.packing.running:
            return planned
        # Those that have ended as well: a dry run counts a job as ended before it shows the next.
        planned_jobs = dag.needrun_jobs(exclude_finished=False)
        wanted = {job.wildcards.run for job in planned_jobs if job.rule.name == "publish"}
        return tuple(run for run in planned if run in wanted) or planned

    @property
    def published(self) -> str:
        return "|".join(self.packing.published) or "none"

    def marker_of(self, run: str) -> list[str]:
        pack = self.packing.pack_of(run)
        if pack is None or run in self.packing.ready:
            return []
        return [self.packs.marker(pack)]

    # ------------------------------------------------------------ files

    def results_of(self, tables: Iterable[str], needed: bool = False) -> list[str]:
        """Results that these tables show; with `needed` those of teachers and earlier phases as well.

        But for those that were deleted after all that read them had finished.
        """
        for table in tables:
            if table not in self.plan.tables:
                raise UserError(f"there is no table '{table}'", given=table, choices=self.plan.tables)
        runs = [run for table in tables for run in self.plan.tables[table].runs]
        counted = [table for table in tables if self.plan.tables[table].kind == "cost"]
        chosen: Iterable[str] = dict.fromkeys(runs)
        if needed:
            chosen = awaited(self.plan, runs, Path(self.runs))
        files = [f"{self.runs}/{run}/metrics.json" for run in chosen]
        return [*files, *(f"{self.results}/costs/{table}.json" for table in counted)]

    def with_scratch(self, tables: Iterable[str]) -> list[str]:
        """Results that these tables show, and those of the same students without a teacher (gains)."""
        runs = [run for table in tables for run in self.plan.tables[table].runs]
        scratch = dict.fromkeys(filter(None, map(self.plan.scratch_of, runs)))
        files = [*self.results_of(tables), *(f"{self.runs}/{run}/metrics.json" for run in scratch)]
        return list(dict.fromkeys(files))

    def priority(self, run: str) -> int:
        """How early a run's job starts: the highest priority of the tables and claims that need it."""
        return self._priorities.get(run, 0)

    def priority_of_pack(self, pack: str) -> int:
        """How early a pack's job starts: as early as the first of its runs would."""
        return max(map(self.priority, self.members(pack)), default=0)

    @cached_property
    def _priorities(self) -> dict[str, int]:
        stated = [(table.priority, table.runs) for table in self.plan.tables.values()]
        # Of claims that state one: 0 would speed up a table whose own is below.
        for claim in filter(lambda claim: claim.priority, load_claims(self.config)):
            stated.append((claim.priority, runs_of_claim(self.config, self.plan, claim)))
        # The highest last: of several that need a run it is the one that counts.
        stated.sort(key=lambda entry: entry[0])
        return {run: priority for priority, runs in stated for run in self.plan.needed(runs)}

    def standing(self, files: Iterable[str]) -> str:
        """A digest of what is wrong with results, empty if nothing is; as a rule's param it remakes a file.

        Snakemake itself does not make a file again because a result that it shows was deleted, nor because
        the teacher of a run was trained again.
        """
        files = list(files)
        runs = [Path(file).parent.name for file in files if file.startswith(f"{self.runs}/")]
        missing = [file for file in files if not Path(file).exists()]
        changed = list(outdated(self.plan, dict.fromkeys(runs), Path(self.runs)))
        return digest(missing, changed) if missing or changed else ""

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
        return self.plan.of_page("grid" if name == "comparison_grid" else "index")

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


def changed_settings(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that differ from config/config.yaml; Snakemake hands over all of them."""
    stated = read_yaml(folder / "config.yaml") or {}
    return {k: _retyped(value) for k, value in settings.items() if k not in stated or stated[k] != value}


def _retyped(value: Any) -> Any:
    """Numbers, booleans and null inside a list or mapping, which Snakemake's --config leaves as text."""
    if isinstance(value, Mapping):
        return {key: _scalar(_retyped(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_scalar(_retyped(inner)) for inner in value]
    return value


def _scalar(value: Any) -> Any:
    parsed = yaml.safe_load(value) if isinstance(value, str) else value
    if parsed is None or isinstance(parsed, bool | int | float):
        return parsed
    return value


def usual_amount(config: Config) -> Amount:
    """What one training gets if no profile says more: one GPU, or none at a scale for CPUs."""
    trainings, settings = config.scale.trainings, execution_settings(config)
    return Amount(
        gpus=0 if trainings.cpu or settings.device == "cpu" else 1,
        hours=trainings.minutes / 60,
        memory=trainings.memory_mb / 1000,
        cpus=threads_of(settings),
    )


def execution_settings(config: Config) -> ExecutionSettings:
    """How the engine executes runs: config.yaml's section, the scale's, data roots, weight files."""
    main, trainings = config.main, config.scale.trainings
    files = [weights for dataset in main.teacher_files.values() for weights in dataset.values()]
    execution = main.execution.model_dump(exclude={"pack"})
    if trainings.workers is not None:
        execution["workers"] = trainings.workers
    return ExecutionSettings(
        **execution,
        allow_cpu=trainings.cpu,
        threads=trainings.threads,
        data_roots={name: root for name, root in main.data_roots.items() if root},
        weight_files={weights.sha256: weights.path for weights in files},
        teachers=teacher_facts(config),
    )


def teacher_facts(config: Config) -> dict[str, TeacherFacts]:
    """What runs need to measure their teachers: a crop, and the top-1 that is expected of them."""
    # Of data sets that are trained on at this scale: the settings go into the command of every training.
    stood_for, facts = config.scale.datasets, dict[str, TeacherFacts]()
    for dataset, data in config.datasets.items():
        if dataset in stood_for:
            continue
        for name, entry in config.architectures.items():
            file, pretrained = config.main.teacher_files.get(dataset, {}).get(name), entry.pretrained
            if file is None and pretrained is None:
                continue
            expected = file.expected_top1 if file else None
            if file is None and pretrained and data.teachers == "pretrained":
                expected = pretrained.expected_top1
            crop = entry.test_crop if data.test_crop else None
            if crop or expected is not None:
                facts[f"{dataset}/{name}"] = TeacherFacts(test_crop=crop, expected_top1=expected)
    return facts

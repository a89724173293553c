"""Which runs the tables need: tables -> cells -> runs, each run once however many cells share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from fbt_core.errors import nearest
from fbt_core.methods.registry import method_names, method_traits
from fbt_core.spec import (
    ENGINE_REVISION,
    FUSION_REVISION,
    DatasetSpec,
    MethodSpec,
    NetworkSpec,
    RecipeSpec,
    RunSpec,
    Value,
)
from fbt_paper.config.load import Config, validate
from fbt_paper.config.names import parameter_problem
from fbt_paper.config.parameters import default_values, rule_faults, typed
from fbt_paper.config.problems import ConfigError, Problem
from fbt_paper.config.records import (
    AccuracyTable,
    ArchitectureEntry,
    ChainSettings,
    DatasetEntry,
    RunSettings,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """The runs (one per seed) behind one printed number; `note` says why there are none."""

    row: str
    column: str
    runs: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class PlannedTable:
    """A table's cells by (row, column); a cost table has none."""

    key: str
    kind: str
    target: str
    cells: Mapping[tuple[str, str], Cell]

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of the runs shown in the table, in reading order, each once."""
        return tuple(dict.fromkeys(run for cell in self.cells.values() for run in cell.runs))


@dataclass(frozen=True)
class Plan:
    """All tables and all runs of one scale; a run comes after the runs it needs."""

    scale: str
    tables: Mapping[str, PlannedTable]
    runs: Mapping[str, RunSpec]

    def needed(self, runs: Iterable[str]) -> tuple[str, ...]:
        """These runs and all they need (teachers, assistants, earlier phases), in an order that works."""
        found: dict[str, None] = {}
        for run in runs:
            found.update(dict.fromkeys(self.needed(self.runs[run].needed_runs())))
            found[run] = None
        return tuple(found)

    def tables_of(self, run: str) -> tuple[str, ...]:
        """Keys of the tables that show this run."""
        return tuple(key for key, table in self.tables.items() if run in table.runs)

    def target(self, *targets: str) -> tuple[str, ...]:
        """Keys of the tables that belong to these targets (tables, grid)."""
        return tuple(key for key, table in self.tables.items() if table.target in targets)

    @property
    def all_tables(self) -> tuple[str, ...]:
        """Keys of the tables that `snakemake all` builds: at smoke the grids are a target of their own."""
        return self.target("tables") if self.scale == "smoke" else self.target("tables", "grid")


class Placed(NamedTuple):
    """A setting and the place in the table's file that states it."""

    value: Any
    where: str


Settings = dict[str, Placed]
"""Settings of one run, by name; parameters and recipe changes by dotted name (parameters.gamma)."""


def plan(config: Config) -> Plan:
    """The whole plan at config's scale; raises ConfigError with all problems of all tables."""
    planner = _Planner(config)
    tables = {key: planner.plan_table(key) for key in config.tables}
    if planner.problems:
        raise ConfigError(planner.problems)
    return Plan(scale=config.main.scale, tables=tables, runs=planner.runs)


class _StopError(Exception):
    """A cell cannot be planned; the problem is already noted."""


class _Planner:
    """Turns settings into runs; gathers runs and problems."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scale = config.main.scale
        self.runs: dict[str, RunSpec] = {}
        self.problems: list[Problem] = []
        self.file = ""
        self._teachers: dict[tuple[str, str], NetworkSpec] = {}
        self._traits = {name: method_traits(name) for name in method_names()}

    # ------------------------------------------------------------ tables

    def plan_table(self, key: str) -> PlannedTable:
        table = self.config.tables[key]
        self.file = f"config/tables/{key}.yaml"
        cells = dict(self._cells(table)) if isinstance(table, AccuracyTable) else {}
        return PlannedTable(key=key, kind=table.kind, target=table.target, cells=cells)

    def _cells(self, table: AccuracyTable) -> Iterator[tuple[tuple[str, str], Cell]]:
        seeds = (table.seeds or {}).get(self.scale, self._seeds())
        base = flatten(table.base, "base")
        rows = {row.key: flatten(row, f"rows[{i}]") for i, row in enumerate(table.rows)}
        columns = {column.key: flatten(column, f"columns[{i}]") for i, column in enumerate(table.columns)}
        for row, row_settings in rows.items():
            for column, column_settings in columns.items():
                if (row, column) in table.skip:
                    continue
                try:
                    settings = self._merge(base, row_settings, column_settings)
                    yield (row, column), self._cell(row, column, settings, seeds)
                except _StopError:
                    continue

    def _merge(self, *parts: Settings) -> Settings:
        """Base, row and column together; a key that two of them set differently is a problem."""
        merged: Settings = {}
        clash = False
        for part in parts:
            for key, placed in part.items():
                before = merged.setdefault(key, placed)
                if before.value != placed.value:
                    clash = True
                    message = (
                        f"sets {key} a second time: {_show(placed.value)} here, {_show(before.value)} in "
                    )
                    self._note(placed.where, f"{message}{before.where}; keep one of the two")
        if clash:
            raise _StopError
        return merged

    def _cell(self, row: str, column: str, settings: Settings, seeds: tuple[int, ...]) -> Cell:
        where = f"cell {row}, {column}"
        measure = settings.pop("measure", Placed("student", where))
        if measure.value == "teacher":
            network = self._teacher(settings, where, self._seeds()[0])
            run = network.weights.removeprefix("run:")
            if network.weights.startswith("run:"):
                return Cell(row, column, (run,))
            return Cell(row, column, (), f"{network.weights}, not measured here")
        return Cell(row, column, tuple(self._run(settings, where, seed).id for seed in seeds))

    # ------------------------------------------------------------ runs

    def _run(self, settings: Settings, where: str, seed: int) -> RunSpec:
        """The run of these settings; its teacher's and earlier phases' runs are planned before it."""
        dataset = self._dataset(settings, where)
        method = self._attempt(self._method, settings, where, dataset)
        needs_teacher = method is not None and self._traits[method.name]["needs_teacher"]
        student = self._attempt(self._student, settings, where, dataset, seed)
        teacher = self._attempt(self._teacher, settings, where, seed) if needs_teacher else None
        recipe = self._attempt(self._recipe, settings, dataset, student.family) if student else None
        if not (method and student and recipe) or (needs_teacher and not teacher):
            raise _StopError
        if teacher and teacher.weights == student.weights:
            message = (
                f"the teacher is the student's own {student.weights.replace(':', ' ')}; a pair needs two"
            )
            self._note(settings["teacher"].where, message, stop=True)
        return self._add(
            RunSpec(
                dataset=dataset_spec(self.config, dataset),
                student=student,
                teacher=teacher,
                method=method,
                recipe=recipe,
                seed=seed,
                engine_revision=ENGINE_REVISION,
            )
        )

    def _attempt(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """What is made, or None where that is not possible: the other parts' problems are told too."""
        try:
            return make(*arguments)
        except _StopError:
            return None

    def _add(self, run: RunSpec) -> RunSpec:
        return self.runs.setdefault(run.id, run)

    def _student(self, settings: Settings, where: str, dataset: str, seed: int) -> NetworkSpec:
        key = str(self._required("student", settings, where).value)
        if "start" not in settings:
            return self._network(key, dataset)
        start = settings["start"]
        chain = self._chain(start, settings, inherit_student=True)
        before = self._run(chain, start.where, seed)
        if before.student.architecture != key:
            self._note(
                start.where, f"a phase goes on with the same student, '{key}', not another one", stop=True
            )
        return _trained(before)

    def _teacher(self, settings: Settings, where: str, seed: int) -> NetworkSpec:
        teacher = self._required("teacher", settings, where)
        if isinstance(teacher.value, ChainSettings):
            return _trained(self._run(self._chain(teacher, settings), teacher.where, seed))
        return self._plain_teacher(str(teacher.value), self._dataset(settings, where), teacher.where)

    def _plain_teacher(self, key: str, dataset: str, where: str) -> NetworkSpec:
        if (key, dataset) not in self._teachers:
            self._teachers[key, dataset] = self._make_teacher(key, dataset, where)
        return self._teachers[key, dataset]

    def _make_teacher(self, key: str, dataset: str, where: str) -> NetworkSpec:
        """A teacher as datasets.yaml says: timm's weights, a fine-tune run, a from-scratch run, or a file."""
        entry, own = self.config.datasets[dataset], self.config.main.teacher_files.get(dataset, {}).get(key)
        network = self._network(key, dataset)
        if own:
            stated = {"mean": own.mean, "std": own.std} if own.mean else {}
            return network.model_copy(update={"weights": f"file:{own.sha256}", **stated})
        if entry.teachers == "from_scratch":
            return _trained(self._alone(network, dataset, self._recipe_entry(dataset, network.family)))
        pretrained = self.config.architectures[key].pretrained
        if pretrained is None:
            message = f"'{key}' cannot teach on {dataset}: architectures.yaml has no `pretrained` for it"
            self._note(where, message, stop=True)
            raise _StopError
        weights = {"weights": f"timm:{pretrained.tag}"}
        if entry.teachers == "pretrained":
            return network.model_copy(update={**weights, "mean": pretrained.mean, "std": pretrained.std})
        recipe = self._recipe_entry(dataset, "teacher")
        return _trained(self._alone(network.model_copy(update=weights), dataset, recipe))

    def _alone(self, network: NetworkSpec, dataset: str, recipe: RecipeSpec) -> RunSpec:
        """The run that trains a network without a teacher."""
        return self._add(
            RunSpec(
                dataset=dataset_spec(self.config, dataset),
                student=network,
                teacher=None,
                method=self._method_spec("scratch", dataset, {}),
                recipe=recipe,
                seed=self._seeds()[0],
                engine_revision=ENGINE_REVISION,
            )
        )

    def _chain(self, placed: Placed, after: Settings, inherit_student: bool = False) -> Settings:
        """Settings of the run before in a chain: its own, the dataset, for a phase also the student."""
        settings = flatten(placed.value, placed.where)
        inherited = ("dataset", "student") if inherit_student else ("dataset",)
        return {**{key: after[key] for key in inherited if key in after}, **settings}

    # ------------------------------------------------------------ parts of a spec

    def _dataset(self, settings: Settings, where: str) -> str:
        placed = self._required("dataset", settings, where)
        stand_ins = self.config.smoke.datasets if self.scale == "smoke" else {}
        return stand_ins.get(placed.value, str(placed.value))

    def _network(self, key: str, dataset: str) -> NetworkSpec:
        """An untrained network; at smoke its tiny twin where smoke.yaml has one."""
        entry: ArchitectureEntry = self.config.architectures[key]
        twin = self.config.smoke.architectures.get(key) if self.scale == "smoke" else None
        data = self.config.datasets[dataset]
        return NetworkSpec(
            architecture=key,
            family=entry.family,
            create=(twin or entry).create,
            options=(twin or entry).options,
            weights="none",
            mean=data.mean,
            std=data.std,
        )

    def _method(self, settings: Settings, where: str, dataset: str) -> MethodSpec:
        name, given = self._required("method", settings, where).value, _inside("parameters", settings)
        method = self._method_spec(name, dataset, self._parameters(name, given))
        faults = list(rule_faults(self.config.methods[name], method.parameters))
        for names, message in faults:
            places = [given[key].where for key in names if key in given]
            if places:
                self._note(places[0], message)
            else:
                self.problems.append(Problem("config/methods.yaml", name, message))
        if faults:
            raise _StopError
        return method

    def _parameters(self, method: str, given: Settings) -> dict[str, Value]:
        """The parameters that the table sets, checked against config/methods.yaml."""
        entry = self.config.methods[method]
        messages = {key: parameter_problem(method, entry, key, placed.value) for key, placed in given.items()}
        wrong = {key: message for key, message in messages.items() if message}
        for name, message in wrong.items():
            self._note(given[name].where, message)
        if wrong:
            raise _StopError
        return {name: typed(entry.parameters[name], placed.value) for name, placed in given.items()}

    def _method_spec(self, name: str, dataset: str, given: Mapping[str, Value]) -> MethodSpec:
        traits = self._traits[name]
        return MethodSpec(
            name=name,
            parameters={**default_values(self.config.methods[name], dataset, self.scale), **given},
            revision=traits["revision"],
            fusion_revision=FUSION_REVISION if traits["uses_fusion"] else None,
        )

    def _recipe(self, settings: Settings, dataset: str, family: str) -> RecipeSpec:
        recipe, given = self._recipe_entry(dataset, family), _inside("recipe", settings)
        if not given:
            return recipe
        changed: dict[str, Any] = recipe.model_dump(mode="json")
        for name, placed in given.items():
            self._change(changed, name, placed)
        try:
            return validate(RecipeSpec, changed, self.file)
        except ConfigError as error:
            self.problems.extend(_placed(problem, given) for problem in error.problems)
            raise _StopError from None

    def _change(self, recipe: dict[str, Any], name: str, placed: Placed) -> None:
        if name not in recipe:
            self._note(placed.where, f"unknown key of a recipe; {nearest(name, recipe)}", stop=True)
        nested = isinstance(placed.value, dict) and isinstance(recipe[name], dict)
        recipe[name] = {**recipe[name], **placed.value} if nested else placed.value

    def _recipe_entry(self, dataset: str, role: str) -> RecipeSpec:
        """The recipe of a dataset for a family, or for `teacher` (fine-tuning)."""
        try:
            return find_recipe(self.config, dataset, role)[0]
        except ConfigError as error:
            self.problems.extend(error.problems)
            raise _StopError from None

    # ------------------------------------------------------------ small things

    def _seeds(self) -> tuple[int, ...]:
        return self.config.smoke.seeds if self.scale == "smoke" else self.config.main.seeds

    def _required(self, key: str, settings: Settings, where: str) -> Placed:
        if key not in settings:
            self._note(where, f"no `{key}` is set; set it in the base, the row or the column", stop=True)
        return settings[key]

    def _note(self, where: str, message: str, stop: bool = False) -> None:
        self.problems.append(Problem(self.file, where, message))
        if stop:
            raise _StopError


def dataset_spec(config: Config, key: str) -> DatasetSpec:
    """What a run sees of a dataset: its entry in datasets.yaml without title, teachers and recipes."""
    entry: DatasetEntry = config.datasets[key]
    names = [name for name in DatasetSpec.model_fields if name != "name"]
    return DatasetSpec(name=key, **{name: getattr(entry, name) for name in names})


def find_recipe(config: Config, dataset: str, role: Any) -> tuple[RecipeSpec, str]:
    """The recipe of a dataset for a family, or for `teacher` (fine-tuning), and where config/ states it.

    Raises ConfigError where there is none.
    """
    recipes: Mapping[Any, RecipeSpec]
    if config.main.scale == "smoke":
        recipes, file, path = config.smoke.recipes, "config/smoke.yaml", "recipes"
    else:
        reading, source = config.main.recipes, config.datasets[dataset].recipes
        recipes = config.recipes.of(reading)[source]
        file, path = "config/recipes.yaml", f"{reading}.{source}"
    if role not in recipes:
        raise ConfigError([Problem(file, path, f"has no recipe for '{role}'; {nearest(role, recipes)}")])
    return recipes[role], f"{file}: {path}.{role}"


def _placed(problem: Problem, given: Settings) -> Problem:
    """A changed recipe's problem at the place in the table's file that states the change."""
    key = re.split(r"[.\[]", problem.path, maxsplit=1)[0]
    if key in given:
        return replace(problem, path=given[key].where + problem.path.removeprefix(key))
    return replace(problem, path=next(iter(given.values())).where.rpartition(".")[0])


def flatten(settings: RunSettings | ChainSettings, where: str) -> Settings:
    """Settings by name with their places; parameters and recipe changes one by one."""
    flat: Settings = {}
    for key in ("dataset", "student", "teacher", "start", "method", "measure"):
        value = getattr(settings, key, None)
        if value is not None:
            flat[key] = Placed(value, f"{where}.{key}")
    for group in ("parameters", "recipe"):
        for key, value in (getattr(settings, group) or {}).items():
            flat[f"{group}.{key}"] = Placed(value, f"{where}.{group}.{key}")
    return flat


def _inside(group: str, settings: Settings) -> Settings:
    prefix = f"{group}."
    return {key.removeprefix(prefix): placed for key, placed in settings.items() if key.startswith(prefix)}


def _trained(run: RunSpec) -> NetworkSpec:
    """A run's student with the weights that the run gives it."""
    return run.student.model_copy(update={"weights": f"run:{run.id}"})


def _show(value: Any) -> str:
    return "a run of its own" if isinstance(value, ChainSettings) else repr(value)

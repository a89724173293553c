"""Which runs the tables need: tables -> cells -> runs, each run once however many cells share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from fbt_core.spec import NetworkSpec, RunSpec
from fbt_paper.config.claims import Claim, cell_paths
from fbt_paper.config.load import Config
from fbt_paper.config.problems import Collector
from fbt_paper.config.records import AccuracyTable, ScaleEntry, Table
from fbt_paper.plan.run_spec import dataset_of, planned_seeds, run_specs, teacher_of
from fbt_paper.plan.settings import Setting, flatten, merge


@dataclass(frozen=True)
class Cell:
    """The runs (one per seed) behind one printed number; `note` says why there are none.

    A teacher without a run of its own (weights of timm, a file) has its `teacher` here, and in `measured_by`
    a run of the same table that it teaches: that run measures it.
    """

    row: str
    column: str
    runs: tuple[str, ...]
    note: str = ""
    teacher: NetworkSpec | None = None
    measured_by: str = ""


@dataclass(frozen=True)
class PlannedTable:
    """A table's cells by (row, column); a cost table has none."""

    key: str
    kind: str
    target: str
    priority: int
    cells: Mapping[tuple[str, str], Cell]

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of the runs shown in the table, in reading order, each once."""
        return tuple(dict.fromkeys(run for cell in self.cells.values() for run in cell.runs))


@dataclass(frozen=True)
class Plan:
    """All tables and all runs of one scale; a run comes after the runs it needs."""

    scale: str
    size: ScaleEntry
    tables: Mapping[str, PlannedTable]
    runs: Mapping[str, RunSpec]

    def needed(self, runs: Iterable[str]) -> tuple[str, ...]:
        """These runs and all they need (teachers, assistants, earlier phases), in an order that works."""
        # A mapping keeps the order of insertion, each run after those it needs; a set would lose it.
        needed: dict[str, None] = {}
        for run in runs:
            needed.update(dict.fromkeys(self.needed(self.runs[run].needed_runs())))
            needed[run] = None
        return tuple(needed)

    def scratch_of(self, run: str) -> str | None:
        """The run of the same student, recipe and seed without a teacher; None: not planned, or itself."""
        scratch = self._scratch.get(_without_teacher(self.runs[run]))
        return None if scratch == run else scratch

    @cached_property
    def _scratch(self) -> dict[tuple[str, ...], str]:
        """Runs that begin with nothing and learn from labels alone, by all that a gain over them shares."""
        return {
            _without_teacher(spec): run
            for run, spec in self.runs.items()
            if spec.method.name == "scratch" and spec.student.weights == "none"
        }

    def tables_of(self, run: str) -> tuple[str, ...]:
        """Keys of the tables that show this run."""
        return tuple(key for key, table in self.tables.items() if run in table.runs)

    def target(self, *targets: str) -> tuple[str, ...]:
        """Keys of the tables that belong to these targets (tables, grid)."""
        return tuple(key for key, table in self.tables.items() if table.target in targets)

    @property
    def all_tables(self) -> tuple[str, ...]:
        """Keys of the tables that `snakemake all` builds; the scale says whether the grids are among them."""
        return self.target(*self.size.targets)

    def of_page(self, page: str) -> tuple[str, ...]:
        """Keys of the tables that a page shows, with its claims and figures: the grids, or those of `all`."""
        return self.target("grid") if page == "grid" else self.all_tables


def _without_teacher(spec: RunSpec) -> tuple[str, ...]:
    """What a run has in common with the training of its student without a teacher, as text."""
    # Started from nothing: a later phase of a chain is compared with the student's own training as well.
    student = spec.student.model_copy(update={"weights": "none"})
    parts = (spec.dataset, student, spec.recipe, spec.test_crop)
    return (*("" if part is None else part.model_dump_json() for part in parts), str(spec.seed))


def runs_of_claim(config: Config, plan: Plan, claim: Claim) -> tuple[str, ...]:
    """The runs behind all cells that a claim names; none of cells that are skipped or counted."""
    runs: dict[str, None] = {}
    for table, row, column in (path.split("/") for path in cell_paths(config, claim)):
        cell = plan.tables[table].cells.get((row, column))
        runs.update(dict.fromkeys(cell.runs if cell else ()))
    return tuple(runs)


def plan(config: Config) -> Plan:
    """The whole plan at config's scale; raises ConfigError with all problems of all tables."""
    collect = Collector()
    runs: dict[str, RunSpec] = {}
    tables = {}
    for key, table in config.tables.items():
        cells: dict[tuple[str, str], Cell] = {}
        for row, column in _indices(table):
            # Cell by cell, so that one cell that cannot be trained hides none of the others' problems.
            planned = collect.try_(plan_cell, config, key, row, column)
            if planned is None:
                continue
            cell, specs = planned
            cells[cell.row, cell.column] = cell
            runs.update({spec.id: spec for spec in specs})
        cells = {cell: _measured(planned, cells.values(), runs) for cell, planned in cells.items()}
        priority = table.priority if isinstance(table, AccuracyTable) else 0
        tables[key] = PlannedTable(key, table.kind, table.target, priority, cells)
    collect.finish()
    return Plan(scale=config.main.scale, size=config.scale, tables=tables, runs=runs)


def table_label(config: Config, plan: Plan, key: str) -> str:
    """Above a table whose numbers cannot be compared with the paper's: its own data and networks."""
    if not config.stand_ins:
        return ""
    specs = [plan.runs[run] for run in plan.needed(plan.tables[key].runs)]
    titles = dict.fromkeys(config.datasets[spec.dataset.name].title for spec in specs)
    parts = {spec.dataset.train_images for spec in specs if spec.dataset.part_of is not None}
    tiny = any(spec.student.architecture in config.scale.architectures for spec in specs)
    data = " and ".join(titles)
    if parts:
        data += f", students see {' or '.join(f'{images:,}' for images in sorted(parts))} images"
    return config.label_of(" on ".join(filter(None, ["tiny networks" if tiny else "", data])))


def _measured(cell: Cell, cells: Iterable[Cell], runs: Mapping[str, RunSpec]) -> Cell:
    """The cell, with the table's first run that measures its teacher; as it is if there is none."""
    if cell.teacher is None:
        return cell
    taught = (run for other in cells for run in other.runs if runs[run].teacher == cell.teacher)
    return replace(cell, measured_by=next(taught, ""))


def _indices(table: Table) -> Iterator[tuple[int, int]]:
    """Row and column index of every cell that is trained; a cost table has none."""
    if isinstance(table, AccuracyTable):
        for i, row in enumerate(table.rows):
            for j, column in enumerate(table.columns):
                if (row.key, column.key) not in table.skip:
                    yield i, j


def plan_cell(config: Config, key: str, i: int, j: int) -> tuple[Cell, tuple[RunSpec, ...]]:
    """A table's cell and its runs, each after the runs it needs; raises ConfigError with all problems."""
    table, file = config.tables[key], f"config/tables/{key}.yaml"
    assert isinstance(table, AccuracyTable)
    row, column = table.rows[i], table.columns[j]
    settings = merge(
        file,
        f"cell {row.key}, {column.key}",
        flatten(table.base, file, "base"),
        flatten(row, file, table.row_path(i)),
        flatten(column, file, f"columns[{j}]"),
    )
    # The nearest scale of the lineage decides: one that extends smoke has its seeds unless it states some.
    stated = table.seeds or {}
    seeds = next((stated[scale] for scale in config.lineage if scale in stated), planned_seeds(config))
    measure = settings.values.get("measure", Setting("student", file, ""))
    if measure.value == "teacher":
        dataset = dataset_of(config, settings)
        sources = [teacher_of(config, settings, dataset, seed) for seed in seeds]
        # Each once: one teacher may serve all seeds.
        shown = tuple(dict.fromkeys(run.id for source in sources for run in source.runs[-1:]))
        if shown:
            return Cell(row.key, column.key, shown), tuple(run for source in sources for run in source.runs)
        # Weights of timm or of the user's own have no run here, and no number that was not measured is shown.
        network = sources[0].network
        return Cell(row.key, column.key, (), f"{network.weights}, not measured here", network), ()
    chains = [run_specs(config, settings, seed) for seed in seeds]
    note, is_tiny = "", settings.required("student").value in config.scale.architectures
    # Said, because the cell's label will promise it.
    if is_tiny and "student_weights" in settings.values:
        note = "the tiny student starts untrained"
    cell = Cell(row.key, column.key, tuple(chain[-1].id for chain in chains), note)
    return cell, tuple(spec for chain in chains for spec in chain)

"""Read config/: every file is checked, every mistake reported with its file and the path inside it.

Two steps: all files are read as plain values; then each is checked against its record, in one pass that also
looks up the names that the other files define.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from fbt_core.errors import nearest
from fbt_core.methods.facts import MethodFacts
from fbt_core.methods.registry import method_files
from fbt_core.spec import NetworkSpec
from fbt_paper.config.check import validate
from fbt_paper.config.figures import KINDS, FigureConfig
from fbt_paper.config.parameters import entry_problems
from fbt_paper.config.problems import Collector, ConfigError, Problem, unknown
from fbt_paper.config.read import files_in, read_mapping, read_rows, read_yaml, shown
from fbt_paper.config.records import (
    AccuracyTable,
    ArchitectureEntry,
    CostTable,
    DatasetEntry,
    MainConfig,
    RecipesFile,
    RecipeTable,
    ReferenceRow,
    ScaleEntry,
    Table,
    row_keys,
)

__all__ = [
    "CONFIG_FOLDER",
    "COST_COLUMNS",
    "Config",
    "ConfigError",
    "Problem",
    "load",
    "read_mapping",
    "read_yaml",
    "tiny_network",
    "validate",
]

M = TypeVar("M", bound=BaseModel)
Content = Mapping[str, Any]
CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "config"
FILES = ("config", "datasets", "architectures", "methods", "recipes")
TEST_SCALE = "smoke"
"""The scale whose tiny networks the engine's tests take."""
TABLE_KINDS: dict[str, type[BaseModel]] = {
    "accuracy": AccuracyTable,
    "cost": CostTable,
    "recipes": RecipeTable,
}
COST_COLUMNS = tuple(
    f"{part}_{what}" for part in ("student", "ofa_branch", "fbt_branch") for what in ("params", "flops")
)
REFERENCE = ".reference.csv"
RULES = (
    *("all", "tables", "grid", "partial", "figures", "claims", "fetch_weights", "train", "pack", "publish"),
    *("measure_cost", "collect_results", "build_table", "compare_with_paper", "judge_claims", "build_page"),
    *("extract_features", "plot_taxonomy", "plot_features", "plot_similarity", "plot_curves"),
    *("plot_gaps", "plot_sweeps"),
)
"""Names that a table cannot have: each table is a target, `snakemake table4`, beside the workflow's rules."""


@dataclass(frozen=True)
class Config:
    """All of config/, checked."""

    folder: Path
    main: MainConfig
    datasets: Mapping[str, DatasetEntry]
    architectures: Mapping[str, ArchitectureEntry]
    methods: Mapping[str, MethodFacts]
    recipes: RecipesFile
    scales: Mapping[str, ScaleEntry]
    tables: Mapping[str, Table]
    references: Mapping[str, tuple[ReferenceRow, ...]]
    figures: Mapping[str, FigureConfig]

    @property
    def scale(self) -> ScaleEntry:
        """The scale that is planned; what it extends is already in it."""
        return self.scales[self.main.scale]

    @property
    def lineage(self) -> tuple[str, ...]:
        """The name of the scale that is planned and, one after the other, of those that it extends."""
        names = [self.main.scale]
        while (parent := self.scales[names[-1]].extends) is not None:
            names.append(parent)
        return tuple(names)

    @property
    def stand_ins(self) -> str:
        """In short, what is trained instead of the paper's networks and data; empty if nothing is."""
        titles = dict.fromkeys(self.datasets[key].title for key in self.scale.datasets.values())
        networks = "" if self.scale.is_full_size else "tiny networks"
        return " on ".join(filter(None, [networks, " and ".join(titles)]))

    @property
    def scale_label(self) -> str:
        """What stands beside every number that cannot be compared with the paper's; empty if it can."""
        return self.label_of(self.stand_ins) if self.stand_ins else ""

    def label_of(self, trained: str) -> str:
        """The label of numbers from these networks and data."""
        what = f"{self.main.scale.upper()}: {trained}"
        return f"{what}. These numbers are not the paper's and cannot be compared with them."


def load(folder: Path | str = CONFIG_FOLDER, overrides: Content | None = None) -> Config:
    """All of config/, checked; `overrides` changes keys of config.yaml (Snakemake's --config, fbt's --set).

    Raises ConfigError with the problems of all files.
    """
    # Plain values first: names of all files must be known before the first of them is checked.
    folder, collect = Path(folder), Collector()
    _refuse_yml(collect, folder)
    files: dict[str, Any] = {name: collect.try_(read_mapping, folder / f"{name}.yaml") for name in FILES}
    if files["config"] is not None:
        # Merged before the check, so that a wrong value on the command line is reported like one in the file.
        files["config"] = merge(files["config"], overrides or {})
    tables = _read_folder(collect, folder / "tables")
    figures = _read_folder(collect, folder / "figures")
    _refuse_rule_names(collect, tables)
    # A scale that extends another states only what differs: it is checked whole or not at all.
    scales = _extended(collect, _read_folder(collect, folder / "scales"))

    # The methods come first: the parameters that tables set are checked against their entries.
    names = {**_names(files, tables), "scale": list(scales)}
    methods = _methods(collect, files, names)
    names["parameter_fault"] = lambda method, name, value: (
        # An entry that is not sound has been reported: its parameters are not reported again in every table.
        method in methods and methods[method].fault(method, name, value)
    )

    config = Config(
        folder=folder,
        main=_file(collect, MainConfig, files, "config", names),
        datasets=_entries(collect, DatasetEntry, files, "datasets", names),
        architectures=_entries(collect, ArchitectureEntry, files, "architectures", names),
        methods=methods,
        recipes=_file(collect, RecipesFile, files, "recipes", names),
        scales=_scales(collect, scales, names),
        tables={
            key: collect.try_(_of_kind, TABLE_KINDS, table, f"config/tables/{key}.yaml", names)
            for key, table in tables.items()
        },
        references={
            path.name.removesuffix(REFERENCE): collect.try_(_reference, path, tables)
            for path in files_in(folder / "tables", REFERENCE)
        },
        figures={
            key: collect.try_(_of_kind, KINDS, figure, f"config/figures/{key}.yaml", names)
            for key, figure in figures.items()
        },
    )
    # Only now: a problem of one file must not hide those of the others.
    collect.finish()
    return replace(config, tables={key: _say_data(config, table) for key, table in config.tables.items()})


def _say_data(config: Config, table: Table) -> Table:
    """The table whose caption and labels name the data that its runs train on at this scale."""
    if not isinstance(table, AccuracyTable):
        return table  # costs are counted for the paper's own data, recipes are the paper's
    titles = {key: entry.title for key, entry in config.datasets.items()}
    words = {titles[stated]: titles[used] for stated, used in config.scale.datasets.items()}

    def say(text: str) -> str:
        for stated, used in words.items():
            text = _say_stand_in(text, stated, used)
        return text

    lines = {
        kind: tuple(line.model_copy(update={"label": say(line.label)}) for line in getattr(table, kind))
        for kind in ("rows", "columns")
    }
    return table.model_copy(update={"caption": say(table.caption), **lines})


def _say_stand_in(text: str, stated: str, used: str) -> str:
    """`... on CIFAR-100` as `... on Fashion-MNIST for CIFAR-100`, by the titles of the two datasets."""
    # How many images there are stands in the table's label. The paper writes CIFAR100 as well.
    name, pattern = used.partition(" (")[0], re.escape(stated).replace(r"\-", "-?")
    of_the_same = name.startswith(stated)
    return re.sub(
        rf"\b{pattern}\b", lambda written: name if of_the_same else f"{name} for {written[0]}", text
    )


def _refuse_rule_names(collect: Collector, tables: Iterable[str]) -> None:
    for name in tables:
        if name in RULES:
            message = f"'{name}' is a target of the workflow; give the table's file another name"
            collect.problems.append(Problem(f"config/tables/{name}.yaml", "", message))


def merge(stated: Content, changes: Content) -> dict[str, Any]:
    """The stated mapping with the changes; a mapping among these changes only the keys that it names."""
    both = {key for key, value in changes.items() if isinstance(value, Mapping)}
    both &= {key for key, value in stated.items() if isinstance(value, Mapping)}
    return {**stated, **changes, **{key: merge(stated[key], changes[key]) for key in both}}


# ---------------------------------------------------------------- names


def _names(files: Mapping[str, Content | None], tables: Mapping[str, Content | None]) -> dict[str, Any]:
    """What each kind of name may be, for the types of records.py; None: any, as its file cannot be read."""
    # From plain values, not from records: a name counts as known even if its own entry has a mistake.
    keys = {name: None if content is None else list(content) for name, content in files.items()}
    datasets = files["datasets"] or {}
    # Nothing is checked yet, so any key may hold a value of any type.
    reading = (files["recipes"] or {}).get(str((files["config"] or {}).get("recipes")))
    return {
        "dataset": keys["datasets"],
        "architecture": keys["architectures"],
        # A method without a file would be planned and could not be trained.
        "method": keys["methods"] and [name for name in keys["methods"] if name in method_files()],
        "recipes": list(reading) if isinstance(reading, dict) else None,
        "table": list(tables),
        "needs_root": {
            name: entry.get("needs_root") for name, entry in datasets.items() if isinstance(entry, dict)
        },
    }


def _line_names(table: Content) -> dict[str, Any]:
    """What a table's own settings may name: its rows, its columns, and the method that its base sets."""
    base, names = table.get("base"), dict[str, Any]()
    for kind in ("row", "column"):
        lines = table.get(f"{kind}s")
        # A wrong type is reported when the table is checked; here it must only not raise.
        lines = lines if isinstance(lines, list) else []
        names[kind] = [key for line in lines if isinstance(line, dict) for key in row_keys(line)]
    return {**names, "base_method": base.get("method") if isinstance(base, dict) else None}


def _printed_names(table: Content) -> dict[str, Any]:
    """What a printed number may name as its row and its column."""
    names, gain = _line_names(table), table.get("gain")
    if table.get("kind") == "cost":
        names["column"] = list(COST_COLUMNS)
    # The closing line has printed numbers as well, but is neither a row nor a column of the table.
    if isinstance(gain, dict):
        names["row" if gain.get("along") == "rows" else "column"].append(str(gain.get("key")))
    return names


# ---------------------------------------------------------------- the files


def _read_folder(collect: Collector, folder: Path) -> dict[str, Content | None]:
    """What the YAML files of a folder hold, by name; None for one that cannot be read."""
    _refuse_yml(collect, folder)
    # The name of a file becomes part of targets and wildcards, so it is checked like a key.
    paths = files_in(folder, ".yaml")
    for path in paths:
        collect.try_(_check_key, path.stem, shown(path))
    return {path.stem: collect.try_(read_mapping, path) for path in paths}


def _refuse_yml(collect: Collector, folder: Path) -> None:
    for path in files_in(folder, ".yml"):
        # Left unread without a word, a table called .yml would simply not be there.
        message = f"is not read, because its name ends in .yml; call it {path.stem}.yaml"
        collect.problems.append(Problem(shown(path), "", message))


def _check_key(key: str, file: str) -> None:
    # Keys become parts of run ids, file names and Snakemake's wildcards: nothing that a shell or regex reads.
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", key):
        message = "a name is made of small letters, digits and _ and starts with a letter"
        raise ConfigError([Problem(file, key, message)])


def _file(
    collect: Collector, model: type[M], files: Mapping[str, Content | None], name: str, names: Content
) -> Any:
    """The record of a file; None, with its problems collected, if it is not sound."""
    if files[name] is None:
        return None
    return collect.try_(validate, model, files[name], f"config/{name}.yaml", (), names)


def _entries(
    collect: Collector, model: type[M], files: Mapping[str, Content | None], name: str, names: Content
) -> dict[str, M]:
    """The sound entries of a file of named entries."""
    file, entries = f"config/{name}.yaml", dict[str, M]()
    for key, content in (files[name] or {}).items():
        collect.try_(_check_key, key, file)
        entry = collect.try_(validate, model, content, file, [key], names)
        if entry is not None:
            entries[key] = entry
    return entries


def _extended(collect: Collector, scales: Mapping[str, Content | None]) -> dict[str, Content | None]:
    """Each scale's file with the keys of the scale it extends; None for one that cannot be read."""

    def whole(name: str, below: tuple[str, ...] = ()) -> Content | None:
        content = scales[name]
        parent = content.get("extends") if content else None
        if content is None or not isinstance(parent, str) or parent not in scales:
            return content  # an unknown parent is reported with the types
        # Checked before the recursion, which would otherwise never end.
        if parent in (*below, name):
            file, chain = f"config/scales/{name}.yaml", " -> ".join([*below, name, parent])
            raise ConfigError([Problem(file, "extends", f"a scale cannot extend itself ({chain})")])
        inherited = whole(parent, (*below, name))
        return None if inherited is None else merge(inherited, content)

    return {name: collect.try_(whole, name) for name in scales}


def _scales(
    collect: Collector, scales: Mapping[str, Content | None], names: Content
) -> dict[str, ScaleEntry]:
    """The sound scales. A problem of an inherited key is reported once, in the file that states the key."""
    entries: dict[str, ScaleEntry] = {}
    problems: dict[str, list[Problem]] = {}
    for name, content in scales.items():
        try:
            if content is not None:
                file = f"config/scales/{name}.yaml"
                entries[name] = validate(ScaleEntry, content, file, names=names)
        except ConfigError as error:
            problems[name] = list(error.problems)
    # A scale is checked with all it inherits, so one mistake appears in each scale that extends the file.
    for name, own_problems in problems.items():
        inherited = {(p.path, p.message) for p in problems.get(str((scales[name] or {}).get("extends")), [])}
        collect.problems += [p for p in own_problems if (p.path, p.message) not in inherited]
    return entries


def _methods(
    collect: Collector, files: Mapping[str, Content | None], names: Content
) -> dict[str, MethodFacts]:
    """The sound entries of methods.yaml, each checked against its method's code as well."""
    # Looked for as a file: planning never imports the code of a method, which imports torch.
    for name in files["methods"] or {}:
        if name not in method_files():
            message = f"there is no file fbt_core/methods/{name}.py; {nearest(name, method_files())}"
            collect.problems.append(Problem("config/methods.yaml", name, message))
    methods = _entries(collect, MethodFacts, files, "methods", names)
    for name, method in methods.items():
        if name in method_files():
            collect.problems += entry_problems(name, method, names)
    return methods


def _of_kind(
    kinds: Mapping[str, type[BaseModel]], content: Content | None, file: str, names: Content
) -> BaseModel | None:
    """The record of a file that says of which kind it is."""
    if content is None:
        return None
    # By hand, not by a union: pydantic would report a wrong kind as an error of every record.
    kind = str(content.get("kind"))
    if kind not in kinds:
        raise ConfigError([Problem(file, "kind", f"'{kind}' is not valid here; {nearest(kind, kinds)}")])
    return validate(kinds[kind], content, file, names={**names, **_line_names(content)})


def _reference(path: Path, tables: Mapping[str, Content | None]) -> tuple[ReferenceRow, ...]:
    """The printed numbers of one table, with their source and status."""
    collect, file, table = Collector(), shown(path), path.name.removesuffix(REFERENCE)
    if table not in tables:
        message = f"there is no table '{table}'; {nearest(table, tables)}"
        collect.problems.append(Problem(file, "", message))
    # If the table itself is unknown, its rows and columns are not reported one by one.
    content = tables.get(table)
    names = _printed_names(content) if content else None
    printed: dict[tuple[str, str], ReferenceRow] = {}
    independent: list[ReferenceRow] = []
    for number, line in read_rows(path):
        row: ReferenceRow | None = collect.try_(validate, ReferenceRow, line, file, [f"line {number}"], names)
        if row and row.status == "independent":
            independent.append(row)
        elif row and (row.row, row.column) in printed:
            message = f"{row.row}, {row.column} is given twice"
            collect.problems.append(Problem(file, f"line {number}", message))
        elif row:
            printed[row.row, row.column] = row
    collect.finish()
    return (*printed.values(), *independent)


# ---------------------------------------------------------------- the engine's tests


def tiny_network(key: str, folder: Path = CONFIG_FOLDER) -> NetworkSpec:
    """The tiny twin of an architecture, untrained, as scale smoke takes it."""
    file = f"config/scales/{TEST_SCALE}.yaml"
    # Two files are read, not all of config/: the engine's tests must not fail for a mistake in a table.
    scale = validate(ScaleEntry, read_mapping(folder / "scales" / f"{TEST_SCALE}.yaml"), file)
    entries = read_mapping(folder / "architectures.yaml")
    if key not in scale.architectures:
        raise ConfigError([unknown(file, ["architectures"], "architecture", key, scale.architectures)])
    entry = validate(ArchitectureEntry, entries.get(key), "config/architectures.yaml", [key])
    twin = scale.architectures[key]
    return NetworkSpec(
        architecture=key,
        family=entry.family,
        create=twin.create,
        options=twin.options,
        weights="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )

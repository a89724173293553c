"""Names that one file of config/ takes from another: every one must be there.

Read from the files as they are, not from checked records: a name is told beside a wrong key of its file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fbt_core.errors import nearest
from fbt_core.methods.facts import MethodFacts
from fbt_core.methods.registry import method_files
from fbt_paper.config.parameters import entry_problems
from fbt_paper.config.problems import Problem, dotted, unknown
from fbt_paper.config.records import ReferenceRow
from fbt_paper.config.timm_names import is_unknown, near_names

COST_COLUMNS = tuple(
    f"{part}_{what}" for part in ("student", "ofa_branch", "fbt_branch") for what in ("params", "flops")
)
Content = Mapping[str, Any]
References = Mapping[str, Sequence[ReferenceRow]]
Path = Sequence[object]


def check_names(
    content: Content, methods: Mapping[str, MethodFacts], references: References
) -> list[Problem]:
    """All problems of names in config/; `content` maps a file's name to what it holds, None if unreadable."""
    names = _Names(content, methods)
    tables = {key: table for key, table in content["tables"].items() if table is not None}
    found = [*names.main(), *names.datasets(), *names.architectures(), *names.methods()]
    found += [*names.recipes(), *names.smoke()]
    for key, table in tables.items():
        found += names.table(f"config/tables/{key}.yaml", table)
    for key, rows in references.items():
        found += _reference_problems(key, rows, content["tables"])
    return found


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one: its type is told elsewhere."""
    return value if isinstance(value, Mapping) else {}


def lines(table: Content, group: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows or columns of a table with their places."""
    given = table.get(group)
    return [(i, mapping(line)) for i, line in enumerate(given)] if isinstance(given, list) else []


class _Names:
    """The names that each file defines, and the checks of each file against them."""

    def __init__(self, content: Content, methods: Mapping[str, MethodFacts]) -> None:
        self.content, self.entries, self.files = content, methods, method_files()
        self.known: dict[str, list[str] | None] = {
            "dataset": self._keys("datasets"),
            "architecture": self._keys("architectures"),
            "method": self._keys("methods", self.files),
        }

    def _keys(self, name: str, among: Collection[str] | None = None) -> list[str] | None:
        content = self.content[name]
        return None if content is None else [key for key in content if among is None or key in among]

    def _unknown(self, file: str, path: Path, kind: str, name: Any) -> Iterator[Problem]:
        known = self.known[kind]
        if isinstance(name, str) and known is not None and name not in known:
            yield unknown(file, path, kind, name, known)

    # ------------------------------------------------------------ files

    def main(self) -> Iterator[Problem]:
        file, main = "config/config.yaml", mapping(self.content["config"])
        datasets = mapping(self.content["datasets"])
        for name, root in mapping(main.get("data_roots")).items():
            yield from self._unknown(file, ["data_roots", name], "dataset", name)
            if root is not None and mapping(datasets.get(name)).get("needs_root") is False:
                others = [key for key, entry in datasets.items() if mapping(entry).get("needs_root")]
                message = (
                    f"its images are shipped with the package, so it takes no folder; {nearest(name, others)}"
                )
                yield Problem(file, f"data_roots.{name}", message)
        for name, files in mapping(main.get("teacher_files")).items():
            yield from self._unknown(file, ["teacher_files", name], "dataset", name)
            for key in mapping(files):
                yield from self._unknown(file, ["teacher_files", name, key], "architecture", key)

    def datasets(self) -> Iterator[Problem]:
        main, recipes = mapping(self.content["config"]), mapping(self.content["recipes"])
        known = mapping(recipes.get(str(main.get("recipes"))))
        for name, entry in mapping(self.content["datasets"]).items():
            given = mapping(entry).get("recipes")
            if known and isinstance(given, str) and given not in known:
                yield unknown("config/datasets.yaml", [name, "recipes"], "recipes", given, known)

    def architectures(self) -> Iterator[Problem]:
        for file in ("architectures", "smoke"):
            entries = mapping(self.content[file])
            entries = mapping(entries.get("architectures")) if file == "smoke" else entries
            start = ["architectures"] if file == "smoke" else []
            for name, entry in entries.items():
                for reading, datasets in mapping(mapping(entry).get("options_by_recipes")).items():
                    for dataset in mapping(datasets):
                        path = [*start, name, "options_by_recipes", reading, dataset]
                        yield from self._unknown(f"config/{file}.yaml", path, "dataset", dataset)
                create = mapping(entry).get("create")
                if isinstance(create, str) and is_unknown(create):
                    message = f"timm has no '{create}'; {near_names(create)}"
                    yield Problem(f"config/{file}.yaml", dotted([*start, name, "create"]), message)

    def methods(self) -> Iterator[Problem]:
        known = self.known["dataset"]
        for name in mapping(self.content["methods"]):
            if name not in self.files:
                message = f"there is no file fbt_core/methods/{name}.py; {nearest(name, self.files)}"
                yield Problem("config/methods.yaml", name, message)
            elif name in self.entries:
                yield from entry_problems(name, self.entries[name], known)

    def recipes(self) -> Iterator[Problem]:
        for reading, datasets in mapping(self.content["recipes"]).items():
            for name in mapping(datasets) if reading != "sources" else ():
                yield from self._unknown("config/recipes.yaml", [reading, name], "dataset", name)

    def smoke(self) -> Iterator[Problem]:
        file, smoke = "config/smoke.yaml", mapping(self.content["smoke"])
        for name, stand_in in mapping(smoke.get("datasets")).items():
            for key in (name, stand_in):
                yield from self._unknown(file, ["datasets", name], "dataset", key)
        for name in mapping(smoke.get("architectures")):
            yield from self._unknown(file, ["architectures", name], "architecture", name)
        for family in ("cnn", "msa", "mlp") if smoke else ():
            if family not in mapping(smoke.get("recipes")):
                yield Problem(file, f"recipes.{family}", "is missing")

    # ------------------------------------------------------------ tables

    def table(self, file: str, table: Content) -> Iterator[Problem]:
        base = mapping(table.get("base"))
        yield from self._settings(file, ["base"], base, None)
        for group in ("rows", "columns"):
            for i, line in lines(table, group):
                yield from self._settings(file, [group, i], line, base.get("method"))
            yield from _doubled_keys(file, group, [line.get("key") for _, line in lines(table, group)])
        yield from _skip_problems(file, table)
        yield from _gain_problems(file, table)

    def _settings(self, file: str, path: Path, settings: Content, method: Any) -> Iterator[Problem]:
        """Names in the base, a row, a column or the run before; `method` is the base's."""
        teacher = settings.get("teacher")
        yield from self._unknown(file, [*path, "dataset"], "dataset", settings.get("dataset"))
        yield from self._unknown(file, [*path, "student"], "architecture", settings.get("student"))
        yield from self._unknown(file, [*path, "teacher"], "architecture", teacher)
        yield from self._unknown(file, [*path, "method"], "method", settings.get("method"))
        yield from self._parameters(file, path, settings, method)
        for part in ("teacher", "start"):
            yield from self._chain(file, [*path, part], settings.get(part))

    def _chain(self, file: str, path: Path, settings: Any) -> Iterator[Problem]:
        if isinstance(settings, Mapping):
            yield from self._settings(file, path, settings, None)

    def _parameters(self, file: str, path: Path, settings: Content, base: Any) -> Iterator[Problem]:
        """Where base and line name two methods, the planner tells that instead."""
        own = settings.get("method")
        method = None if own and base and own != base else own or base
        entry = self.entries.get(method) if isinstance(method, str) else None
        for name, value in mapping(settings.get("parameters")).items() if entry else ():
            where = [*path, "parameters", name]
            message = _parameter_fault(str(method), entry, name, value) if entry else None
            if message:
                yield Problem(file, dotted(where), message)


def _parameter_fault(method: str, entry: MethodFacts, name: str, value: Any) -> str | None:
    """What is wrong with a parameter that a table sets; a list or a mapping is reported with the types."""
    is_known = name in entry.parameters
    return None if is_known and isinstance(value, list | dict) else entry.fault(method, name, value)


def _doubled_keys(file: str, group: str, keys: Sequence[Any]) -> Iterator[Problem]:
    """Keys of rows, and of columns, are unique within their table."""
    for index, key in enumerate(keys):
        if key is not None and key in keys[:index]:
            yield Problem(file, dotted([group, index, "key"]), f"the key '{key}' is given twice")


def _keys_of(table: Content, group: str) -> list[str]:
    return [str(line.get("key")) for _, line in lines(table, group)]


def _skip_problems(file: str, table: Content) -> Iterator[Problem]:
    skip = table.get("skip")
    for i, pair in enumerate(skip if isinstance(skip, list) else ()):
        if isinstance(pair, list) and len(pair) == 2:
            for kind, name in zip(("row", "column"), pair, strict=True):
                choices = _keys_of(table, f"{kind}s")
                if isinstance(name, str) and name not in choices:
                    yield unknown(file, ["skip", i], kind, name, choices)


def _gain_problems(file: str, table: Content) -> Iterator[Problem]:
    """`gain.over` is a column where the gain is averaged along the rows, and the other way round."""
    gain = mapping(table.get("gain"))
    kind = {"rows": "column", "columns": "row"}.get(str(gain.get("along")))
    over = gain.get("over")
    if kind and isinstance(over, str) and over not in _keys_of(table, f"{kind}s"):
        yield unknown(file, ["gain", "over"], kind, over, _keys_of(table, f"{kind}s"))


# ---------------------------------------------------------------- printed numbers


def _line_keys(table: Content) -> dict[str, list[str]]:
    """Keys that a printed number may name as its row and as its column."""
    if table.get("kind") == "cost":
        return {"row": _keys_of(table, "rows"), "column": list(COST_COLUMNS)}
    keys = {"row": _keys_of(table, "rows"), "column": _keys_of(table, "columns")}
    gain = mapping(table.get("gain"))
    if gain:
        keys["row" if gain.get("along") == "rows" else "column"].append(str(gain.get("key")))
    return keys


def _reference_problems(name: str, rows: Sequence[ReferenceRow], tables: Content) -> Iterator[Problem]:
    file = f"config/tables/{name}.reference.csv"
    if name not in tables:
        yield Problem(file, "", f"there is no table '{name}'; {nearest(name, tables)}")
    keys, seen = _line_keys(mapping(tables.get(name))), set()
    for number, line in enumerate(rows if tables.get(name) else (), start=2):
        for kind, given in (("row", line.row), ("column", line.column)):
            if given not in keys[kind]:
                yield unknown(file, [f"line {number}"], kind, given, keys[kind])
        if (line.row, line.column) in seen:
            yield Problem(file, f"line {number}", f"{line.row}, {line.column} is given twice")
        seen.add((line.row, line.column))

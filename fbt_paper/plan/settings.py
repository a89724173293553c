"""Settings of a run and where a table states each of them: base, row and column put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fbt_paper.config.problems import ConfigError, Problem
from fbt_paper.config.records import ChainSettings, RunSettings

# `parameters` and `recipe` are split: a row may set one parameter and a column another.
PLAIN = ("dataset", "student", "student_weights", "teacher", "start", "method", "measure")
GROUPS = ("parameters", "recipe")


@dataclass(frozen=True)
class Setting:
    """A value with its source: the file that states it and the path inside that file."""

    value: Any
    file: str
    path: str

    def error(self, message: str) -> ConfigError:
        """The error of a setting that cannot be used."""
        return ConfigError([Problem(self.file, self.path, message)])


@dataclass(frozen=True)
class Settings:
    """Settings of one run by name (parameters.gamma, recipe.epochs); file and path say who asks for it."""

    file: str
    path: str
    values: Mapping[str, Setting]

    def required(self, name: str) -> Setting:
        """A setting that every run needs; raises ConfigError if the table does not state it."""
        if name in self.values:
            return self.values[name]
        message = f"no `{name}` is set; set it in the base, the row or the column"
        raise ConfigError([Problem(self.file, self.path, message)])

    def group(self, name: str) -> dict[str, Setting]:
        """The settings of a group, parameters or recipe, by their names inside it."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): setting
            for key, setting in self.values.items()
            if key.startswith(prefix)
        }

    def of_chain(self, chain: Setting, inherited: tuple[str, ...]) -> Settings:
        """Settings of the run before this one in a chain: its own, and the inherited ones of this run."""
        # What is not named stays behind: a method's parameters mean nothing to the method of another phase.
        kept = {key: self.values[key] for key in inherited if key in self.values}
        return Settings(chain.file, chain.path, {**kept, **flatten(chain.value, chain.file, chain.path)})


def flatten(settings: RunSettings | ChainSettings, file: str, path: str) -> dict[str, Setting]:
    """Settings by name with their source; parameters and recipe changes one by one."""
    flat: dict[str, Setting] = {}
    for key in PLAIN:
        value = getattr(settings, key, None)
        if value is not None:
            flat[key] = Setting(value, file, f"{path}.{key}")
    for group in GROUPS:
        for key, value in (getattr(settings, group) or {}).items():
            flat[f"{group}.{key}"] = Setting(value, file, f"{path}.{group}.{key}")
    return flat


def merge(file: str, path: str, *parts: Mapping[str, Setting]) -> Settings:
    """Base, row and column together; raises ConfigError for every key that two of them set differently."""
    merged: dict[str, Setting] = {}
    clashes: list[Problem] = []
    for part in parts:
        for key, setting in part.items():
            before = merged.setdefault(key, setting)
            if before.value != setting.value:
                values = f"{_show(setting.value)} here, {_show(before.value)} in {before.path}"
                message = f"sets {key} a second time: {values}; keep one of the two"
                clashes.append(Problem(setting.file, setting.path, message))
    if clashes:
        raise ConfigError(clashes)
    return Settings(file, path, merged)


def _show(value: Any) -> str:
    if isinstance(value, ChainSettings):
        return "a run of its own"
    return repr(value)

"""Which methods there are and what each says of itself, read without importing torch.

A method file states two literals at module level, REVISION and TRAITS; a file without TRAITS is a helper.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fbt_core.errors import UserError

if TYPE_CHECKING:
    from fbt_core.methods.base import Context, Method
    from fbt_core.spec import MethodSpec
    from fbt_core.staged import StagedModel

FOLDER = Path(__file__).parent


class UnknownMethodError(UserError):
    """A method name that no file in fbt_core/methods carries."""


def method_names() -> tuple[str, ...]:
    """The names of all methods, sorted: the files of this folder that state TRAITS."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if "TRAITS" in _literals(path)))


def method_traits(name: str) -> dict[str, Any]:
    """A method's TRAITS and its `revision`, as its file states them; torch is not imported."""
    if name not in method_names():
        raise UnknownMethodError(f"there is no method '{name}'", given=name, choices=method_names())
    literals = _literals(FOLDER / f"{name}.py")
    return {**literals["TRAITS"], "revision": literals["REVISION"]}


def build_method(
    spec: MethodSpec, student: StagedModel, teacher: StagedModel | None, context: Context
) -> Method:
    """The training task of a method: the student, the frozen teacher and the method's own modules.

    Raises UnknownMethodError for a name without a file, ParameterError for parameters it does not take.
    """
    method_traits(spec.name)  # an unknown name is told here, before anything is imported
    module = importlib.import_module(f"fbt_core.methods.{spec.name}")
    method: Method = module.METHOD(student, teacher, spec.parameters, context)
    return method


@cache
def _literals(path: Path) -> dict[str, Any]:
    """The module-level `NAME = literal` statements of REVISION and TRAITS in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    named = [
        (node.targets[0].id, node.value) for node in assignments if isinstance(node.targets[0], ast.Name)
    ]
    return {name: _literal(path, name, value) for name, value in named if name in ("REVISION", "TRAITS")}


def _literal(path: Path, name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        where, mend = f"{path.name}, line {value.lineno}", "write {...} or a number, without calls or names"
        raise UserError(f"{name} is not a literal", where=where, mend=mend) from error

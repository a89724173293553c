"""Which methods there are and what each says of itself, read without importing torch.

A method file states two literals at module level, REVISION and TRAITS; a file without TRAITS is a helper.
What its parameters are is read from the annotations of its class `Parameters`.
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
ROOT = Path(__file__).parents[2]
Kind = str | tuple[Any, ...] | None


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


def method_parameters(name: str) -> dict[str, Kind]:
    """A method's parameters by name: `bool`, `int`, `float`, `str`, or the choices of a Literal.

    None for an annotation that is none of these. Raises UserError for a file without a class Parameters.
    """
    path = FOLDER / f"{name}.py"
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == "Parameters":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {ast.unparse(item.target): _kind(path, item.annotation) for item in fields}
    raise UserError("has no class Parameters", where=path.name, hint="write one, empty if there are none")


def _kind(path: Path, annotation: ast.expr | None) -> Kind:
    """What an annotation allows; a name such as Direction is looked up, also where it is imported from."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        choices = ast.literal_eval(annotation.slice)
        return choices if isinstance(choices, tuple) else (choices,)
    if not isinstance(annotation, ast.Name):
        return None
    name = annotation.id
    if name in ("bool", "int", "float", "str"):
        return name
    if name in _assigned(path):
        return _kind(path, _assigned(path)[name])
    source = _imported_from(path, name)
    return _kind(source, annotation) if source else None


def _imported_from(path: Path, name: str) -> Path | None:
    """The file of fbt_core that a name is imported from."""
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            source = ROOT.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return source if source.is_file() else None
    return None


@cache
def _literals(path: Path) -> dict[str, Any]:
    """The module-level `NAME = literal` statements of REVISION and TRAITS in a file."""
    wanted = {name: value for name, value in _assigned(path).items() if name in ("REVISION", "TRAITS")}
    return {name: _literal(path, name, value) for name, value in wanted.items()}


@cache
def _assigned(path: Path) -> dict[str, ast.expr]:
    """The values of the module-level `NAME = ...` statements in a file."""
    assignments = [node for node in _tree(path).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: node.value for node in assignments if isinstance(node.targets[0], ast.Name)}


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        where = f"{path.name}, line {error.lineno}"
        raise UserError(f"is not Python: {error.msg}", where=where) from None


def _literal(path: Path, name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        where, hint = f"{path.name}, line {value.lineno}", "write {...} or a number, without calls or names"
        raise UserError(f"{name} is not a literal", where=where, hint=hint) from error

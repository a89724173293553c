"""Which methods there are, and how one is built from its spec. Planning imports this: torch comes in late."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fbt_core.methods.facts import FILE, UnknownMethodError, method_facts, read_facts

if TYPE_CHECKING:
    from fbt_core.methods.base import Context, Method
    from fbt_core.spec import MethodSpec
    from fbt_core.staged import StagedModel

FOLDER = Path(__file__).parent
IS_METHOD = re.compile(r"^METHOD = ", re.MULTILINE)


def method_names() -> tuple[str, ...]:
    """The names of all methods that config/methods.yaml states, sorted."""
    return tuple(sorted(read_facts(FILE)))


def method_files() -> tuple[str, ...]:
    """The names of all files of this folder that hold a method, sorted; the others help them."""
    # Found by what the files say, without importing them: torch would come along.
    files = sorted(FOLDER.glob("*.py"))
    return tuple(path.stem for path in files if IS_METHOD.search(path.read_text(encoding="utf-8")))


def build_method(
    spec: MethodSpec, student: StagedModel, teacher: StagedModel | None, context: Context
) -> Method:
    """The training task of a method: the student, the frozen teacher and the method's own modules.

    Raises UnknownMethodError for a name that config/methods.yaml does not state, and ParameterError, with all
    faults at once, for parameters that the method does not take.
    """
    method_facts(spec.name)  # an unknown name is an error of one line, not a failed import
    module = importlib.import_module(f"fbt_core.methods.{spec.name}")
    method: Method = module.METHOD(student, teacher, spec.parameters, context)
    return method


__all__ = ["UnknownMethodError", "build_method", "method_facts", "method_files", "method_names"]

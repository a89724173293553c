"""One distillation run: networks cut into stages, the fused model, methods, and the training loop.

What programs of your own may rely on is listed here; docs/python.md shows it. Importing this package imports
neither torch nor timm: a name brings its module along when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbt_core.errors import UserError
    from fbt_core.methods.registry import method_names
    from fbt_core.own_data import Distilled, distil
    from fbt_core.spec import ExecutionSettings
    from fbt_core.staged.base import Parts, Piece, call, chain, each, unchanged
    from fbt_core.staged.model import StagedModel, stage

HOMES = {
    "distil": "fbt_core.own_data",
    "Distilled": "fbt_core.own_data",
    "method_names": "fbt_core.methods.registry",
    "ExecutionSettings": "fbt_core.spec",
    "UserError": "fbt_core.errors",
    "stage": "fbt_core.staged.model",
    "StagedModel": "fbt_core.staged.model",
    "Parts": "fbt_core.staged.base",
    "Piece": "fbt_core.staged.base",
    "chain": "fbt_core.staged.base",
    "each": "fbt_core.staged.base",
    "call": "fbt_core.staged.base",
    "unchanged": "fbt_core.staged.base",
}
"""The public names and the modules they live in."""

__all__ = [
    "Distilled",
    "ExecutionSettings",
    "Parts",
    "Piece",
    "StagedModel",
    "UserError",
    "call",
    "chain",
    "distil",
    "each",
    "method_names",
    "stage",
    "unchanged",
]


def __getattr__(name: str) -> Any:
    """A public name, from its module."""
    if name not in HOMES:
        raise AttributeError(f"module 'fbt_core' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})

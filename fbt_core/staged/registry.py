"""Find the adapter of a network: every file in fbt_core/staged/adapters is one.

An adapter file has `recognise(network) -> bool`, asked about structure and never about a name, and
`cut(network, image) -> Parts`; the image (1, 3, S, S) may be run through the network, which is in eval mode.
Adapters with a lower ORDER (0 if none is given) are asked first.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TypeVar

from torch import Tensor, nn

from fbt_core.staged import adapters
from fbt_core.staged.base import Parts, UnknownStructure

Cut = TypeVar("Cut")


@cache
def all_adapters() -> tuple[ModuleType, ...]:
    """The adapter modules, special ones before general ones."""
    # Sorted names: the order of a folder differs from disk to disk.
    names = sorted(module.name for module in pkgutil.iter_modules(adapters.__path__))
    modules = [importlib.import_module(f"{adapters.__name__}.{name}") for name in names]
    return tuple(sorted(modules, key=lambda module: getattr(module, "ORDER", 0)))


def find_cut(network: nn.Module, image: Tensor, build: Callable[[Parts], Cut]) -> tuple[str, Cut]:
    """The name of the first adapter that cuts the network exactly, and what `build` makes of its parts.

    Raises UnknownStructure, naming the network's children and what each adapter ran into, when none does.
    """
    reasons = []
    for adapter in all_adapters():
        name = adapter.__name__.rpartition(".")[2]
        # Structure decides, because timm's names say little and users' own nothing.
        if not adapter.recognise(network):
            continue
        try:
            return name, build(adapter.cut(network, image))
        except Exception as error:  # an adapter that guessed wrong: the next one, or the message below
            reasons.append(f"{name}: {first_line(error)}")
    tried = "; ".join(reasons) or "no adapter recognises it"
    raise UnknownStructure(_explain(network, tried), tried)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _explain(network: nn.Module, tried: str) -> str:
    children = ", ".join(f"{name} ({type(child).__name__})" for name, child in network.named_children())
    return (
        f"cannot cut {type(network).__name__} into stem, four stages and head. Its children: {children}. "
        f"Tried: {tried}. An adapter is a file in fbt_core/staged/adapters with recognise(network) and "
        "cut(network, image) -> Parts: the stem, the body as a sequence of at least four pieces that each "
        "take and give one tensor, norm and head, such that one after the other they give network(x) exactly"
    )

"""How a batch is divided among processes and parts, and what refuses to be divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fbt_core.distributed import Group
from fbt_core.errors import UserError
from fbt_core.methods.base import Method
from fbt_core.spec import ExecutionSettings, RecipeSpec


def check_batch(recipe: RecipeSpec, group: Group, accumulation: int) -> None:
    """Refuse a batch that processes and accumulation steps cannot share evenly, or in pairs for mixing."""
    share_of_batch(recipe, group, accumulation)
    check_pairs(recipe, group)


def share_of_batch(recipe: RecipeSpec, group: Group, accumulation: int) -> int:
    """Images in one pass of one process; an indivisible batch is an error listing what divides it."""
    # Equal parts alone: gradients of unequal ones, averaged as equal ones, would be those of another loss.
    parts = group.world * accumulation
    if recipe.batch_size % parts == 0:
        return recipe.batch_size // parts
    divisors = [str(n) for n in range(1, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    what = (
        f"batch_size {recipe.batch_size} cannot be divided by {group.world} processes x "
        f"{accumulation} accumulation steps = {parts}"
    )
    raise UserError(what, where="recipe.batch_size", hint=f"use a product among {', '.join(divisors)}")


def check_pairs(recipe: RecipeSpec, group: Group) -> None:
    """Mixup and CutMix mix pairs of images, so each process needs an even number of them."""
    augmentation = recipe.augmentation
    # timm's Mixup pairs row i with row B - 1 - i, and `rows_of` keeps such a pair on one process.
    pairs = 2 * group.world
    if recipe.batch_size % pairs == 0 or not (augmentation.mixup or augmentation.cutmix):
        return
    below = recipe.batch_size // pairs * pairs
    fitting = " or ".join(str(size) for size in (below, below + pairs) if size)
    processes = f" on each of {group.world} processes" if group.world > 1 else ""
    what = f"mixup and cutmix mix pairs of images, so batch_size {recipe.batch_size} must be even{processes}"
    raise UserError(what, where="recipe.batch_size", hint=f"use a multiple of {pairs}, e.g. {fitting}")


def check_accumulation(method: Method, recipe: RecipeSpec, accumulation: int) -> None:
    """Refuse to cut a batch in parts for a method that needs it whole, unless the recipe allows it."""
    if recipe.allow_changed_batch or accumulation == 1 or not method.needs_whole_batch:
        return
    what = f"method '{method.name}' {method.needs_whole_batch}, which {accumulation} parts would change"
    hint = "set it to 1, use more GPUs, or give the recipe allow_changed_batch: true (that is another run)"
    raise UserError(what, where="gradient_accumulation", hint=hint)


EAGER = ("fcfd",)
"""Methods that torch.compile cannot help: FCFD's paths differ at each step, and each set of them would be
compiled anew, up to torch's limit."""


def wrap(method: Method, settings: ExecutionSettings, group: Group) -> Callable[..., dict[str, Any]]:
    """What a step calls: the method itself, inside DDP if there are several processes."""
    if group.world > 1:
        # DDP takes no device list on CPUs, where gradients are exchanged by gloo.
        devices = [group.device.index] if group.device.type == "cuda" else None
        method.prepare_distributed(devices)
    # Compiled last: what is compiled is the call that a step makes, DDP included.
    return torch.compile(method) if compiles(method.name, settings) else method


def compiles(method: str, settings: ExecutionSettings) -> bool:
    """Whether steps of this method are compiled."""
    return settings.compile and method not in EAGER

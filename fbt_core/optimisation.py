"""Optimiser, schedule, gradient scaling and clipping of a recipe, all through timm and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from fbt_core.spec import OptimizerSpec, RecipeSpec

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STUDENT_PREFIX = "student.network."


def parameter_groups(module: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay, as the recipe's `no_decay` says.

    one_dimensional: vectors and scalars are spared. ofa_repository: those and every name ending in .bias, and
    nothing else (its optimiser never asks the network, so position embeddings and Swin's bias tables decay).
    network_list: as ofa_repository, and what the network lists (position embedding, class token, ...).
    """
    spared = _spared(module, spec.no_decay)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    without = [p for name, p in named if spared(name, p)]
    decayed = [p for name, p in named if not spared(name, p)]
    groups = [
        # Two groups, because weight decay is a property of a group in torch.
        {"params": without, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": spec.weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _spared(module: nn.Module, rule: str) -> Callable[[str, Tensor], bool]:
    if rule == "one_dimensional":
        return lambda name, parameter: parameter.ndim <= 1
    listed = _listed(module) if rule == "network_list" else set()
    return lambda name, parameter: parameter.ndim <= 1 or name.endswith(".bias") or name in listed


def _listed(module: nn.Module) -> set[str]:
    """Names that the student's network wants free of decay."""
    # The student's own list: names of extras follow no convention of timm.
    network = module.get_submodule(STUDENT_PREFIX.rstrip("."))
    ask = getattr(network, "no_weight_decay", None)
    return {STUDENT_PREFIX + name for name in ask()} if ask else set()


class Optimisation:
    """The recipe's optimiser, learning rate and loss scaling for one trainable module."""

    def __init__(self, module: nn.Module, recipe: RecipeSpec, steps: int, device: torch.device) -> None:
        self.module, self.recipe, self.device = module, recipe, device
        spec = recipe.optimizer
        options = {} if spec.momentum is None else {"momentum": spec.momentum}
        groups = parameter_groups(module, spec)
        self.optimizer = create_optimizer_v2(groups, opt=spec.name, lr=spec.learning_rate, **options)
        self.schedule = make_schedule(self.optimizer, recipe, steps)
        # By default torch lets GPUs use TF32 in convolutions and not in products: float32 means neither.
        torch.backends.cuda.matmul.allow_tf32 = recipe.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = recipe.precision == "tf32"
        # Only float16 needs scaling: bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs in the recipe's precision."""
        return autocast(self.recipe, self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled where float16 needs it."""
        self.scaler.scale(loss).backward()

    def step(self, updates: int) -> None:
        """Clip, update, clear the gradients; `updates` counts the updates made so far, this one included."""
        # Over all parameters together, extras included: that is what one norm limits.
        if self.recipe.optimizer.clip_gradient is not None:
            # float16's gradients are still scaled here, and the limit is meant for the true ones.
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.optimizer.clip_gradient)
        # scaler.step leaves out an update whose gradients are not finite, and then lowers the scale.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # None instead of zeros: memory is free until the next backward.
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step_update(updates)

    @property
    def learning_rate(self) -> float:
        """The rate in force now."""
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule and scaler for a checkpoint."""
        # A schedule's state may hold objects; a checkpoint is read as tensors and plain values only.
        schedule = {name: value for name, value in self.schedule.state_dict().items() if _is_plain(value)}
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint left off."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def autocast(recipe: RecipeSpec, device: torch.device) -> torch.autocast:
    """The context in which a forward pass runs in a recipe's precision."""
    kind = AUTOCAST.get(recipe.precision)
    return torch.autocast(device.type, dtype=kind, enabled=kind is not None)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: RecipeSpec, steps: int) -> Scheduler:
    """timm's schedule; it moves once an epoch (timm's habit) or once a step, as the recipe says."""
    spec = recipe.schedule
    # timm counts in the unit that it is updated in.
    unit = steps if spec.update == "step" else 1
    options: dict[str, Any] = {
        "t_in_epochs": spec.update == "epoch",
        "warmup_t": spec.warmup_epochs * unit,
        "warmup_lr_init": spec.warmup_start,
        # Not a prefix: warm-up is part of the epochs, as in the papers' settings.
        "warmup_prefix": False,
    }
    if spec.name == "cosine":
        return CosineLRScheduler(optimizer, recipe.epochs * unit, lr_min=spec.minimum, **options)
    # timm applies milestone m one unit early (at index m - 1); the papers' "after 30 epochs" is index 30.
    milestones = [milestone * unit + 1 for milestone in spec.milestones]
    return MultiStepLRScheduler(optimizer, milestones, decay_rate=spec.factor, **options)


def _is_plain(value: Any) -> bool:
    """Whether a value is numbers, words or lists of them: what a checkpoint may hold besides tensors."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)

"""Over how many images a BatchNorm normalises: a part of the spec, whatever the number of processes."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fbt_core.distributed import Group
from fbt_core.errors import UserError
from fbt_core.spec import RecipeSpec

Forward = Callable[[_BatchNorm, Tensor], Tensor]


def set_normalisation_batch(
    module: nn.Module, recipe: RecipeSpec, group: Group, accumulation: int
) -> nn.Module:
    """Let every BatchNorm of the module normalise over as many images as the recipe says.

    None in the recipe means the whole batch; with `allow_changed_batch` it means the images of one part, over
    all processes. More images than a pass of one process holds are normalised together with other processes,
    fewer in groups; what neither reaches is an error that says what does.
    """
    if not has_batch_norm(module):
        return module
    held = recipe.batch_size // group.world // accumulation
    allowed = recipe.allow_changed_batch
    wanted = recipe.normalisation_batch or recipe.batch_size // (accumulation if allowed else 1)
    together = _reachable_together(held, group.world) if allowed or accumulation == 1 else []
    if held % wanted == 0:
        _normalise_in_groups(module, held // wanted)
        return module
    if wanted in together:
        return _normalise_together(module, wanted // held, group)
    raise _unreachable(wanted, held, together, recipe, accumulation)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any part of the module normalises over the batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _reachable_together(held: int, world: int) -> list[int]:
    """Numbers of images that equal groups of processes hold in one pass."""
    return [held * k for k in range(2, world + 1) if world % k == 0]


def _unreachable(
    wanted: int, held: int, together: list[int], recipe: RecipeSpec, accumulation: int
) -> UserError:
    what = f"BatchNorm cannot normalise over {wanted} images where a pass of one process holds {held}"
    values = [d for d in range(2, held + 1) if held % d == 0] + together
    ways = "use fewer accumulation steps" if accumulation > 1 else "use another number of GPUs"
    allow = ", or set allow_changed_batch: true" if recipe.normalisation_batch is None else ""
    hint = f"{ways}, or set it to one of {', '.join(map(str, values))}{allow} (that is another run)"
    return UserError(what, where="recipe.normalisation_batch", hint=hint)


def _normalise_in_groups(module: nn.Module, groups: int) -> None:
    """Each BatchNorm takes the images of a pass in equal groups, one after the other."""

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        plain = type(self).forward
        if not self.training:
            return plain(self, x)
        return torch.cat([plain(self, part) for part in x.chunk(groups)])

    if groups > 1:
        _replace_forward(module, forward)


def _normalise_together(module: nn.Module, processes: int, group: Group) -> nn.Module:
    """Each BatchNorm shares its statistics with so many processes."""
    ranks = [list(range(first, first + processes)) for first in range(0, group.world, processes)]
    # torch wants every process to take part in making every subgroup, its own or not.
    sharing, _ = dist.new_subgroups_by_enumeration(ranks)
    if group.device.type == "cuda":
        return convert_sync_batchnorm(module, process_group=sharing)
    _replace_forward(module, _shared_forward(sharing, processes))
    return module


def _shared_forward(group: dist.ProcessGroup, processes: int) -> Forward:
    """SyncBatchNorm's arithmetic, which torch has for GPUs only, in plain operations."""

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        if not self.training:
            return type(self).forward(self, x)
        count = processes * x.numel() // x.shape[1]
        mean, variance = _shared_moments(x, count, group)
        if self.track_running_stats:
            # torch normalises by the biased variance but keeps the unbiased one as running statistic.
            _note_statistics(self, mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        y = x * _per_channel(scale, x) + _per_channel(self.bias - mean * scale, x)
        # timm's BatchNorms carry the activation that follows them
        return self.act(self.drop(y)) if hasattr(self, "act") else y

    return forward


def _shared_moments(x: Tensor, count: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over the images of all processes, differentiable."""
    over = [0, *range(2, x.dim())]
    mean = _Sum.apply(x.sum(over), group) / count
    return mean, _Sum.apply((x - _per_channel(mean, x)).square().sum(over), group) / count


class _Sum(torch.autograd.Function):
    """The sum over a group of processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(context, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, context.group), None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _note_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch's BatchNorm does."""
    norm.num_batches_tracked += 1
    rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, rate)
    norm.running_var.lerp_(variance, rate)


def _replace_forward(module: nn.Module, forward: Forward) -> None:
    """Give each BatchNorm another forward; names of parameters and the class stay."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.forward = types.MethodType(forward, part)

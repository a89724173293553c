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


def set_normalisation_batch(
    module: nn.Module, recipe: RecipeSpec, group: Group, accumulation: int
) -> nn.Module:
    """Let every BatchNorm of the module normalise over as many images as the recipe says.

    None in the recipe means the whole batch; with `allow_changed_batch` it means the images of one part, over
    all processes. More images than a pass of one process holds are normalised together with other processes,
    fewer in equal groups one after the other; what neither reaches is an error that says what does.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    # A network without BatchNorm (ViT, Mixer) normalises each image alone, whatever the batch.
    if not norms:
        return module
    # Images in a pass of one process, images to normalise over, and what groups of processes hold together.
    held = recipe.batch_size // group.world // accumulation
    changed = recipe.allow_changed_batch
    wanted = recipe.normalisation_batch or recipe.batch_size // (accumulation if changed else 1)
    together = [held * n for n in range(2, group.world + 1) if group.world % n == 0]
    # Parts come one after the other: no exchange can bring a whole batch together.
    if accumulation > 1 and not changed:
        together = []
    if held == wanted:
        return module
    # Groups inside one pass need no exchange, so they come first.
    if held % wanted == 0:
        _replace_forward(norms, _in_groups(held // wanted))
        return module
    if wanted not in together:
        # All that this setting could be, so that the message helps without another try.
        values = [n for n in range(2, held + 1) if held % n == 0] + together
        hint = "use another number of GPUs"
        if accumulation > 1:
            hint = "use fewer accumulation steps"
        hint += f", or set it to one of {', '.join(map(str, values))}"
        if recipe.normalisation_batch is None:
            hint += ", or set allow_changed_batch: true"
        what = f"BatchNorm cannot normalise over {wanted} images where a pass of one process holds {held}"
        raise UserError(what, where="recipe.normalisation_batch", hint=f"{hint} (that is another run)")
    # torch wants every process to take part in making every subgroup, its own or not.
    size = wanted // held
    ranks = [list(range(first, first + size)) for first in range(0, group.world, size)]
    sharing, _ = dist.new_subgroups_by_enumeration(ranks)
    if group.device.type == "cuda":
        return convert_sync_batchnorm(module, process_group=sharing)
    _replace_forward(norms, _shared(sharing, size))
    return module


def _replace_forward(norms: list[_BatchNorm], train: Callable[[_BatchNorm, Tensor], Tensor]) -> None:
    """Give BatchNorms another forward for training; the names of parameters and the class stay."""

    def forward(norm: _BatchNorm, x: Tensor) -> Tensor:
        # In eval the module's own forward: running statistics need no other images.
        return train(norm, x) if norm.training else type(norm).forward(norm, x)

    # A method of the instance: class, parameters and state stay those that checkpoints and timm know.
    for norm in norms:
        norm.forward = types.MethodType(forward, norm)


def _in_groups(groups: int) -> Callable[[_BatchNorm, Tensor], Tensor]:
    return lambda norm, x: torch.cat([type(norm).forward(norm, part) for part in x.chunk(groups)])


def _shared(group: dist.ProcessGroup, processes: int) -> Callable[[_BatchNorm, Tensor], Tensor]:
    """SyncBatchNorm's arithmetic, which torch has for GPUs only: what tests on CPUs stand on."""

    def train(norm: _BatchNorm, x: Tensor) -> Tensor:
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        # Every process holds equally many images, so counts need no exchange.
        count = processes * x.numel() // x.shape[1]
        mean = _Sum.apply(x.sum(over), group) / count
        # A second exchange: E[x^2] - E[x]^2 in one would lose digits.
        variance = _Sum.apply((x - mean.view(shape)).square().sum(over), group) / count
        if norm.track_running_stats:
            # torch normalises by the biased variance but keeps the unbiased one as running statistic.
            norm.num_batches_tracked += 1
            rate = norm.momentum
            if rate is None:
                rate = 1.0 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean.detach(), rate)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), rate)
        scale = (variance + norm.eps).rsqrt() * norm.weight
        y = x * scale.view(shape) + (norm.bias - mean * scale).view(shape)
        # timm's BatchNorms carry the activation that follows them
        return norm.act(norm.drop(y)) if hasattr(norm, "act") else y

    return train


class _Sum(torch.autograd.Function):
    """The sum over a group of processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(context, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        # A copy: all_reduce works in place, and the input belongs to the graph.
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, context.group), None

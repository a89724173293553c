"""Tensors across the processes of a run: gathering with gradient, dividing the batch, exact sums."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from fbt_core.distributed import rank, world_size


class _Gather(torch.autograd.Function):
    """all_gather of rows in the whole batch's order; backward sums every process's gradient of these rows."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        # Kept for backward: of the whole batch's gradient this process wants its own rows.
        context.mine = _rows(rank(), len(tensor), world_size(), tensor.device)
        # torch's all_gather passes no gradient on, hence a function with a backward of its own.
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        # Processes hold mirrored pairs of rows, so plain concatenation is not the whole batch's order.
        return torch.cat(parts)[_back_in_order(len(tensor), world_size(), tensor.device)]

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        # Summed over processes, because each has computed a loss over all gathered rows.
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[context.mine]


@lru_cache(maxsize=64)  # made anew at each step, its way to a GPU would be a synchronisation
def _rows(number: int, share: int, world: int, device: torch.device) -> Tensor:
    """The whole batch's rows that a process holds."""
    return torch.tensor(rows_of(number, world, share * world), dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def _back_in_order(share: int, world: int, device: torch.device) -> Tensor:
    """Where each row of the whole batch stands among the rows of one process after the other."""
    return torch.cat([_rows(number, share, world, device) for number in range(world)]).argsort()


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Rows of all processes, (B, ...) -> (world * B, ...), differentiable; a single process keeps its own.

    The rows come in the order that a single process with the whole batch would see. The gradient of a row is
    the sum over processes, so that after DDP's average a loss over gathered rows has that process's gradient.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def own_rows(share: int, device: torch.device) -> Tensor:
    """The numbers of this process's rows in a whole batch of which each process holds `share`."""
    return _rows(rank(), share, world_size(), device)


def draw_rows(rows: int, columns: int, device: torch.device) -> Tensor:
    """Uniform numbers (rows, columns) in float64, those that one process with the whole batch draws for them.

    On GPUs every process has a generator of its own, and the numbers are merely independent.
    """
    # All processes draw the whole batch's numbers and take their own: one process would draw the same.
    drawn = torch.rand(rows * world_size(), columns, dtype=torch.float64, device=device)
    if world_size() == 1:
        return drawn
    return drawn[_rows(rank(), rows, world_size(), device)]


def rows_of(number: int, world: int, batch: int) -> tuple[int, ...]:
    """The rows of the whole batch that a process holds.

    Mixup pairs an image with the one at the mirrored row; a process gets both, so that mixing its own rows
    gives what mixing the whole batch would.
    """
    share = batch // world
    # An odd share cannot be pairs; mixing refuses it, and without mixing any rows will do.
    if share % 2:
        return tuple(range(number * share, (number + 1) * share))
    front = range(number * share // 2, (number + 1) * share // 2)
    return (*front, *(batch - 1 - row for row in reversed(front)))


def average(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, in place where there are several."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place where there are several."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def interleave(mine: Tensor, count: int) -> Tensor:
    """All processes' values in one tensor (count,) in main memory; rank r holds those of r, r + world, ..."""
    world = world_size()
    if world == 1:
        return mine.cpu()
    # all_gather takes the same shape from every process; shares may differ by one.
    padded = mine.new_zeros(-(-count // world))
    # The filler counts nothing: what lies beyond `count` is cut off below.
    padded[: len(mine)] = mine
    shares = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(shares, padded)
    # Stacked by column: image i belongs to process i % world.
    return torch.stack(shares, dim=1).flatten()[:count].cpu()

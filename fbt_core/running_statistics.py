"""BatchNorm's running statistics on several processes, where each may have seen other images.

A checkpoint keeps those of every process, so that a run continues exactly; before they are used they are
averaged, in float64: the average of equal float32 numbers is that number, so averaging what was averaged
before (after an evaluation that was interrupted) changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fbt_core import collectives
from fbt_core.distributed import Group, world_size

NAMES = ("running_mean", "running_var")


def average(modules: Sequence[nn.Module]) -> None:
    """Give the modules of all processes the same statistics, their mean."""
    # One exchange for all buffers: a network has a hundred of them.
    if world_size() > 1 and (buffers := _buffers(modules)):
        _fill(buffers, collectives.average(_flat(buffers).double()))


def of_processes(modules: Sequence[nn.Module]) -> Tensor | None:
    """The statistics of every process, (processes, numbers); None where a single process trains."""
    buffers = _buffers(modules)
    if world_size() == 1 or not buffers:
        return None
    mine = _flat(buffers)
    # All processes' rows, because each one continues with its own after a resume.
    rows = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(rows, mine)
    return torch.stack(rows)


def take(modules: Sequence[nn.Module], kept: Tensor | None, group: Group) -> None:
    """Take this process's own statistics out of a checkpoint; on another number of processes their mean."""
    if kept is None:
        return
    buffers = _buffers(modules)
    if len(kept) == group.world:
        _fill(buffers, kept[group.rank])
        return
    # Another number of processes cannot continue each one's own: the mean is what would be scored.
    _fill(buffers, kept.double().mean(0))


def _buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    named = [pair for module in modules for pair in module.named_buffers()]
    return [buffer for name, buffer in named if name.endswith(NAMES)]


def _flat(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])


def _fill(buffers: Sequence[Tensor], numbers: Tensor) -> None:
    parts = numbers.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))

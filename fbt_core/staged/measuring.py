"""Look at a network without touching it: modes, statistics and the random state stay as they were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fbt_core.staged.base import FeatureShape, Parts, UnknownStructure


@contextmanager
def dry_run(network: nn.Module, image_size: int) -> Iterator[Tensor]:
    """Eval mode, no gradient, random state put back; gives one image (1, 3, S, S) on its device."""
    # Each module's own mode: a frozen part of a training network is in eval.
    modes = [(module, module.training) for module in network.modules()]
    weight = next(network.parameters())
    # A random image, not zeros: zeros would hide a cut that leaves a part out.
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    devices = [weight.device] if weight.device.type == "cuda" else []
    network.eval()
    try:
        # The caller's random numbers go on as if nothing had been looked at.
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield image.to(weight.device, weight.dtype)
    finally:
        for module, training in modes:
            module.training = training


def shape_of(x: Tensor, parts: Parts) -> FeatureShape:
    """The shape of a feature of a square image; raises UnknownStructure when it is neither map nor tokens."""
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        raise UnknownStructure(f"a feature is neither a map nor tokens: {_describe(x)}")
    if x.dim() == 4 and parts.channels_last:
        return FeatureShape("nhwc", x.shape[3], tuple(x.shape[1:3]))
    if x.dim() == 4:
        return FeatureShape("nchw", x.shape[1], tuple(x.shape[2:4]))
    prefix = 0 if _is_square(x.shape[1]) else parts.prefix_tokens  # class tokens may join on the way
    side = square_side(x.shape[1] - prefix)
    return FeatureShape("tokens", x.shape[2], (side, side), prefix)


def square_side(positions: int) -> int:
    """The side of the square grid of this many tokens; raises UnknownStructure when there is none."""
    if not _is_square(positions):
        raise UnknownStructure(f"{positions} patch tokens of a square image do not make a square grid")
    return math.isqrt(positions)


def _is_square(positions: int) -> bool:
    return positions > 0 and math.isqrt(positions) ** 2 == positions


def _describe(x: object) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    return f"a {type(x).__name__}"

"""Turn features of any layout into maps (B, C, H, W) or tokens (B, N, C), and back."""

from __future__ import annotations

import torch
from torch import Tensor

from fbt_core.staged.base import FeatureShape


def to_map(x: Tensor, shape: FeatureShape) -> Tensor:
    """The feature as a map (B, C, H, W); prefix tokens are dropped."""
    if shape.layout == "nchw":
        return x
    if shape.layout == "nhwc":
        return x.permute(0, 3, 1, 2)
    patches = x[:, shape.prefix_tokens :]
    # unflatten needs the grid from the shape: tokens have lost it.
    return patches.transpose(1, 2).unflatten(2, shape.grid)


def to_tokens(x: Tensor, shape: FeatureShape) -> Tensor:
    """The feature as tokens (B, H*W, C) in row order; prefix tokens are dropped."""
    if shape.layout == "nchw":
        return x.flatten(2).transpose(1, 2)
    if shape.layout == "nhwc":
        return x.flatten(1, 2)
    return x[:, shape.prefix_tokens :]


def prefix_of(x: Tensor, shape: FeatureShape) -> Tensor | None:
    """The class and distillation tokens (B, prefix, C) in front of the patches; None if there are none."""
    return x[:, : shape.prefix_tokens] if shape.prefix_tokens else None


def from_map(feature_map: Tensor, shape: FeatureShape, prefix: Tensor | None = None) -> Tensor:
    """A map (B, C, H, W) in the layout of `shape`; `prefix` (B, P, C) goes in front if the shape has it.

    Raises ValueError when the map does not fit the shape or the prefix tokens are missing.
    """
    # A map that does not fit would fail later, inside the network, without a word of why.
    _check_fit(feature_map, shape, prefix)
    if shape.layout == "nchw":
        return feature_map
    if shape.layout == "nhwc":
        return feature_map.permute(0, 2, 3, 1)
    tokens = feature_map.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def _check_fit(feature_map: Tensor, shape: FeatureShape, prefix: Tensor | None) -> None:
    got = (feature_map.shape[1], tuple(feature_map.shape[2:]))
    if got != (shape.width, shape.grid):
        raise ValueError(f"a map of width {got[0]} and grid {got[1]} does not fit {shape}")
    tokens = 0 if prefix is None else prefix.shape[1]
    if tokens != shape.prefix_tokens:
        raise ValueError(f"{shape} takes {shape.prefix_tokens} prefix tokens, {tokens} given")

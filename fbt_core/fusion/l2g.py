"""L2G: the local-to-global adapter between the third stage of one network and the fourth of another."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fbt_core.errors import UserError
from fbt_core.staged.base import FeatureShape
from fbt_core.staged.layout import from_map, to_map

BlockKind = Literal["swin", "swinv2", "vit", "none"]


class L2G(nn.Module):
    """Patch embedding and one attention block: takes a feature of `input_shape`, gives one of `output_shape`.

    The patch embedding is a 1x1 convolution from one width to the other (appendix F); if the grids
    differ, the map is averaged (or enlarged, bilinear) to the output's grid before it. `heads` is lowered
    to the largest number that divides the width. block "none" leaves the patch embedding alone.
    """

    def __init__(
        self,
        input_shape: FeatureShape,
        output_shape: FeatureShape,
        block: BlockKind,
        *,
        heads: int,
        window: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.input_shape, self.output_shape = input_shape, output_shape
        self.patch_embedding = nn.Conv2d(input_shape.width, output_shape.width, kernel_size=1)
        self.block = build_block(block, output_shape, heads, window, mlp_ratio)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """The feature as `output_shape` says; `prefix` (B, P, C) are the class tokens to put in front."""
        # Resized before the convolution, which is 1x1: on the output's grid it costs what the output needs.
        feature_map = resize(to_map(x, self.input_shape), self.output_shape.grid)
        # Channels last for the block, which attends over positions.
        x = self.patch_embedding(feature_map).permute(0, 2, 3, 1)
        x = self.block(x).permute(0, 3, 1, 2)
        return from_map(x, self.output_shape, prefix)


class TokenBlock(nn.Module):
    """A ViT block over a map with channels last: positions become tokens and come back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, C) in and out."""
        return self.block(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def build_block(kind: BlockKind, shape: FeatureShape, heads: int, window: int, mlp_ratio: float) -> nn.Module:
    """The attention block over (B, H, W, C) maps of the shape's width and grid.

    Raises UserError when the kind is unknown.
    """
    heads = dividing_heads(shape.width, heads)
    if kind == "none":
        return nn.Identity()
    if kind == "vit":
        return TokenBlock(Block(shape.width, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True))
    if kind in ("swin", "swinv2"):
        # The whole grid is stated: timm lowers the window if it is larger, and shifts nothing then.
        block_class = SwinTransformerBlock if kind == "swin" else SwinTransformerV2Block
        return block_class(
            shape.width, input_resolution=shape.grid, num_heads=heads, window_size=window, mlp_ratio=mlp_ratio
        )
    raise UserError(f"unknown L2G block {kind!r}", given=kind, choices=get_args(BlockKind))


def dividing_heads(width: int, heads: int) -> int:
    """The largest number of heads, at most `heads`, that divides the width."""
    if heads < 1:
        raise UserError(f"block_heads must be at least 1, got {heads}")
    return max(number for number in range(1, heads + 1) if width % number == 0)


def resize(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """The map (B, C, H, W) on another grid: averaged if it shrinks, bilinear if it grows."""
    height, width = feature_map.shape[2:]
    if (height, width) == grid:
        return feature_map
    # Averaging keeps every position's part; interpolation to a smaller grid would skip some.
    if height >= grid[0] and width >= grid[1]:
        return F.adaptive_avg_pool2d(feature_map, grid)
    return F.interpolate(feature_map, size=grid, mode="bilinear", align_corners=False)

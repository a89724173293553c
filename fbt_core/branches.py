"""OFA's exit branches: a classifier on each stage of the student, thrown away after training.

Structure after Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", NeurIPS 2023 (https://arxiv.org/abs/2310.19444) and its released code. The FBT paper's Table 6
(appendix) counts branches that are one block deeper than the released ones on every stage:

    depths        stages 1..4    where from
    PAPER         4, 3, 2, 1     FBT, Table 6: its OFA column comes out to the unit only so
    RELEASED      3, 2, 1, 0     OFA's code; depth 0 is a 1x1 convolution (CNN) or a single block (MSA/MLP)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fbt_core.staged.base import FeatureShape

Depths = tuple[int, int, int, int]
PAPER_DEPTHS: Depths = (4, 3, 2, 1)
RELEASED_DEPTHS: Depths = (3, 2, 1, 0)
FINAL_GRID = 7
HEADS = 4


def ofa_branch(
    shape: FeatureShape, stage: int, student_width: int, teacher_width: int, classes: int, depths: Depths
) -> nn.Module:
    """The branch on stage `stage` (0..3) of a student: its feature as it is -> logits (B, classes).

    `student_width` and `teacher_width` are the networks' final (pooled) widths. Channel maps (nchw) get OFA's
    convolutional branch, tokens and nhwc maps its transformer branch.
    """
    if not 0 <= stage <= 3:
        raise ValueError(f"ofa_branch: stage is {stage}, valid are 0 (first) to 3 (last)")
    depth = depths[stage]
    if depth < 0:
        raise ValueError(f"ofa_branch: depths {depths} hold a negative number of blocks at stage {stage}")
    # Maps with channels last come from attention or token mixing (Swin), so they count as tokens here.
    if shape.layout == "nchw":
        branch: nn.Module = MapBranch(shape.width, max(student_width, teacher_width), classes, depth)
    else:
        # A transformer branch without any block would only average: OFA's code gives it at least one.
        branch = TokenBranch(shape, student_width, classes, max(depth, 1))
    return branch.apply(_initialise)


class MapBranch(nn.Sequential):
    """CNN student: strided depthwise-separable blocks, channels doubling, the last one to `width_out`."""

    def __init__(self, width_in: int, width_out: int, classes: int, depth: int) -> None:
        widths = [width_in * 2**i for i in range(depth)] + [width_out]
        blocks = [SeparableBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        # Depth 0 leaves no block, but the width must still become the classifier's.
        projection = blocks or [nn.Conv2d(width_in, width_out, 1)]
        super().__init__(*projection, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_out, classes))


class SeparableBlock(nn.Sequential):
    """Two depthwise-separable 3x3 convolutions; the first halves the grid, the second changes the width."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(*_separable(width_in, width_in, 2), *_separable(width_in, width_out, 1))


def _separable(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False)
    pointwise = nn.Conv2d(width_in, width_out, 1, bias=False)
    return [depthwise, pointwise, nn.BatchNorm2d(width_out), nn.ReLU()]


class TokenBranch(nn.Module):
    """MSA/MLP student: patch merging towards a 7x7 grid, transformer blocks, then class token or mean."""

    def __init__(self, shape: FeatureShape, width: int, classes: int, depth: int) -> None:
        super().__init__()
        self.shape = shape
        # Prefix tokens are neither merged nor projected: they stay only if the width does.
        self.keeps_prefix = shape.prefix_tokens > 0 and shape.width == width
        self.merging = _merging(shape, width)
        # Heads have to divide the width, and narrow networks of the smoke scale have fewer.
        heads = math.gcd(HEADS, width)
        self.blocks = nn.Sequential(*[Block(width, heads, mlp_ratio=4.0) for _ in range(depth)])
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, prefix + H*W, C) or (B, H, W, C) -> logits (B, classes)."""
        count = self.shape.prefix_tokens
        grid = feature
        # The grid is needed for merging neighbours; tokens have lost it, maps have not.
        if self.shape.layout != "nhwc":
            grid = feature[:, count:].unflatten(1, self.shape.grid)
        tokens = self.merging(grid).flatten(1, 2)
        if not self.keeps_prefix:
            # Without a class token to read, the mean of all positions is what is classified.
            return self.head(self.blocks(tokens).mean(dim=1))
        return self.head(self.blocks(torch.cat([feature[:, :count], tokens], dim=1))[:, 0])


def _merging(shape: FeatureShape, width: int) -> nn.Sequential:
    """As many 2x2 mergings as leave at least 7x7 positions; a bare Linear if only the width differs."""
    # A grid that is small already must not shrink below 7x7, so a negative count is none.
    count = max(int(math.log2(min(shape.grid) / FINAL_GRID)), 0)
    if count == 0 and shape.width == width:
        return nn.Sequential()
    if count == 0:
        return nn.Sequential(nn.Linear(shape.width, width, bias=False))
    widths = [shape.width] + [width] * count
    # As released: a GELU follows the first merging, and every later one but the last.
    active = [i == 0 or i != count - 1 for i in range(count)]
    return nn.Sequential(*[PatchMerging(widths[i], width, active[i]) for i in range(count)])


class PatchMerging(nn.Module):
    """2x2 positions become one: (B, H, W, C) -> (B, H/2, W/2, width); an odd side is padded with zeros."""

    def __init__(self, width_in: int, width_out: int, activation: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width_in)
        self.reduction = nn.Linear(4 * width_in, width_out, bias=False)
        self.activation = nn.GELU() if activation else nn.Identity()

    def forward(self, grid: Tensor) -> Tensor:
        """Merge neighbours into channels, normalise, project."""
        height, width = grid.shape[1:3]
        # An odd side has no partner for its last row or column: zeros are one.
        grid = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
        # The four corners column by column, as Swin orders them.
        corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.activation(self.reduction(self.norm(torch.cat(corners, dim=-1))))


def _initialise(module: nn.Module) -> None:
    """OFA's initialisation: He (fan out) for convolutions, truncated normal (0.02) for Linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)

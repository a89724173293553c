"""MViT: four stages over tokens, each called with the grid of its tokens."""

import math

from timm.models.mvitv2 import MultiScaleVit
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, in_front, pieces, present


def recognise(network: nn.Module) -> bool:
    """timm's MultiScaleVit class."""
    return isinstance(network, MultiScaleVit)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Its own stages; the grid of a square image follows from the number of tokens."""
    stem = Piece(_embed, present(network, "patch_embed", "cls_token", "pos_embed"))
    prefix = 0 if network.cls_token is None else 1
    stages = pieces(network, "stages", _stage)
    return Parts(stem, stages, call("norm"), call("forward_head"), prefix_tokens=prefix)


def _embed(network: MultiScaleVit, x: Tensor) -> Tensor:
    x, _ = network.patch_embed(x)
    x = x if network.cls_token is None else in_front(network.cls_token, x)
    return x if network.pos_embed is None else x + network.pos_embed


def _stage(network: MultiScaleVit, stage: nn.Module, x: Tensor) -> Tensor:
    side = math.isqrt(x.shape[1] - (network.cls_token is not None))
    return stage(x, (side, side))[0]

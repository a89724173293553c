"""CaiT and XCiT: equal blocks over patch tokens; the class token joins after the last of them."""

import math

from timm.models.cait import Cait
from timm.models.xcit import Xcit
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, each, pieces, present


def recognise(network: nn.Module) -> bool:
    """timm's Cait and Xcit classes."""
    return isinstance(network, Cait | Xcit)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split; class attention comes after the last stage."""
    stem = Piece(_embed, present(network, "patch_embed", "pos_embed", "pos_drop"))
    blocks = each(network, "blocks")
    if isinstance(network, Xcit):
        blocks = pieces(network, "blocks", _xcit_block)
    return Parts(stem, blocks, _attend_and_norm, call("forward_head"))


def _embed(network: nn.Module, x: Tensor) -> Tensor:
    if isinstance(network, Cait):
        return network.pos_drop(network.patch_embed(x) + network.pos_embed)
    x, (height, width) = network.patch_embed(x)
    # Fourier positions are made for a grid, and then read as tokens.
    if network.pos_embed is not None:
        positions = network.pos_embed(x.shape[0], height, width).reshape(x.shape[0], -1, x.shape[1])
        x = x + positions.permute(0, 2, 1)
    return network.pos_drop(x)


def _xcit_block(network: Xcit, block: nn.Module, x: Tensor) -> Tensor:
    side = math.isqrt(x.shape[1])
    return block(x, side, side)


def _attend_and_norm(network: nn.Module, x: Tensor) -> Tensor:
    return network.norm(network.forward_cls(x))

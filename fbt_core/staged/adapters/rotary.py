"""EVA, DINOv3 and their like: equal blocks over tokens that take a rotary position embedding."""

import math

from timm.models.eva import Eva
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, UnknownStructure, call, pieces, present

STEM = ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "rope", "patch_drop", "norm_pre")


def recognise(network: nn.Module) -> bool:
    """timm's Eva class."""
    return isinstance(network, Eva)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split; the rotation depends on the grid alone, so each block asks again."""
    # Such an embedding cannot be asked for again by each block.
    if getattr(network, "rope_mixed", False) or network.patch_drop is not None:
        raise UnknownStructure("its rotary embedding differs by block or dropped patch")
    blocks, prefix = pieces(network, "blocks", _block), network.num_prefix_tokens
    stem = Piece(_embed, present(network, *STEM))
    return Parts(stem, blocks, call("norm"), call("forward_head"), prefix_tokens=prefix)


def _embed(network: Eva, x: Tensor) -> Tensor:
    return network.norm_pre(network._pos_embed(network.patch_embed(x))[0])


def _block(network: Eva, block: nn.Module, x: Tensor) -> Tensor:
    if network.rope is None:
        return block(x)
    # A grid that is fixed has its embedding in a buffer.
    if not network.dynamic_img_size and hasattr(network.rope, "feat_shape"):
        return block(x, rope=network.rope.get_embed())
    side = math.isqrt(x.shape[1] - network.num_prefix_tokens)
    return block(x, rope=network.rope.get_embed(shape=(side, side)))

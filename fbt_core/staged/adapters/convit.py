"""ConViT: equal blocks over patch tokens; the class token joins before the first block without locality."""

from timm.models.convit import ConVit
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, chain, each, in_front, present


def recognise(network: nn.Module) -> bool:
    """timm's ConVit class."""
    return isinstance(network, ConVit)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split; the one that the class token joins before takes it along."""
    stem = Piece(_embed, present(network, "patch_embed", "pos_embed", "pos_drop"))
    blocks, joins = list(each(network, "blocks")), network.local_up_to_layer
    if network.cls_token is not None and joins < len(blocks):
        block = chain(*blocks[joins].owns)
        owned = (*block.owns, "cls_token")
        blocks[joins] = Piece(lambda network, x: block.run(network, in_front(network.cls_token, x)), owned)
    return Parts(stem, tuple(blocks), call("norm"), call("forward_head"), prefix_tokens=1)


def _embed(network: ConVit, x: Tensor) -> Tensor:
    x = network.patch_embed(x)
    return network.pos_drop(x + network.pos_embed if network.use_pos_embed else x)

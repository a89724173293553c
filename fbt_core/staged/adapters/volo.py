"""VOLO: outlook blocks over maps with channels last, transformer blocks, a class token at the end."""

from timm.models.volo import VOLO
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, chain, each, present

POSITIONS_BEFORE = 2


def recognise(network: nn.Module) -> bool:
    """timm's VOLO class."""
    return isinstance(network, VOLO)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Its groups of blocks; positions are added before the third, the class token joins after the last."""
    body = list(each(network, "network"))
    group = chain(*body[POSITIONS_BEFORE].owns)
    owned = (*group.owns, *present(network, "pos_embed", "pos_drop"))
    body[POSITIONS_BEFORE] = Piece(lambda network, x: group.run(network, _add_positions(network, x)), owned)
    stem = Piece(lambda network, x: network.patch_embed(x).permute(0, 2, 3, 1), ("patch_embed",))
    return Parts(stem, tuple(body), _attend_and_norm, call("forward_head"), channels_last=True)


def _add_positions(network: VOLO, x: Tensor) -> Tensor:
    if network.pos_embed is None:
        return x
    return network.pos_drop(x + network.pos_embed)


def _attend_and_norm(network: VOLO, x: Tensor) -> Tensor:
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return network.norm(x if network.post_network is None else network.forward_cls(x))

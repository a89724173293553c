"""BEiT and ViT with relative positions: equal blocks over tokens; BEiT may share one position bias."""

from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, UnknownStructure, call, in_front, pieces, present


def recognise(network: nn.Module) -> bool:
    """timm's Beit and VisionTransformerRelPos classes."""
    return isinstance(network, Beit | VisionTransformerRelPos)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split; a shared bias belongs to the stem."""
    if getattr(network, "shared_rel_pos", None) is not None:
        raise UnknownStructure("its blocks share a position bias with dropout, drawn once for all stages")
    owned = present(
        network, "patch_embed", "cls_token", "pos_embed", "pos_drop", "rel_pos_bias", "shared_rel_pos"
    )
    blocks = pieces(network, "blocks", _beit_block if isinstance(network, Beit) else _relpos_block)
    prefix = network.num_prefix_tokens
    return Parts(Piece(_embed, owned), blocks, call("norm"), call("forward_head"), prefix_tokens=prefix)


def _embed(network: nn.Module, x: Tensor) -> Tensor:
    x = network.patch_embed(x)
    if network.cls_token is not None:
        x = in_front(network.cls_token, x)
    if getattr(network, "pos_embed", None) is not None:
        x = x + network.pos_embed
    return network.pos_drop(x) if hasattr(network, "pos_drop") else x


def _beit_block(network: Beit, block: nn.Module, x: Tensor) -> Tensor:
    bias = network.rel_pos_bias() if network.rel_pos_bias is not None else None
    return block(x, shared_rel_pos_bias=bias)


def _relpos_block(network: VisionTransformerRelPos, block: nn.Module, x: Tensor) -> Tensor:
    return block(x, shared_rel_pos=None)

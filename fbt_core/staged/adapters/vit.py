"""ViT and DeiT: equal blocks over patch tokens with class (and distillation) tokens in front."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, each, present

TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")


def recognise(network: nn.Module) -> bool:
    """timm's VisionTransformer class and those derived from it."""
    return isinstance(network, VisionTransformer)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split; the embedding of patches, positions and class tokens is the stem."""
    stem = Piece(_embed, present(network, "patch_embed", *TOKENS, "pos_drop", "patch_drop", "norm_pre"))
    prefix = network.num_prefix_tokens
    return Parts(stem, each(network, "blocks"), call("norm"), call("forward_head"), prefix_tokens=prefix)


def _embed(network: VisionTransformer, x: Tensor) -> Tensor:
    return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(x))))

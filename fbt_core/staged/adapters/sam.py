"""Segment-anything encoders: blocks over maps with channels last, positions added to the patches."""

from timm.layers import resample_abs_pos_embed_nhwc
from timm.models.hieradet_sam2 import HieraDet
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, each, present, unchanged

STEM = ("patch_embed", "pos_embed", "pos_embed_window", "pos_drop", "patch_drop", "norm_pre")


def recognise(network: nn.Module) -> bool:
    """timm's VisionTransformerSAM and HieraDet classes."""
    return isinstance(network, VisionTransformerSAM | HieraDet)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split (SAM) or by resolution (SAM 2); SAM's neck comes before the pooling."""
    hierarchical = isinstance(network, HieraDet)
    stem = Piece(_embed_hiera if hierarchical else _embed_sam, present(network, *STEM))
    norm = unchanged if hierarchical else _neck
    return Parts(stem, each(network, "blocks"), norm, call("forward_head"), channels_last=True)


def _embed_hiera(network: HieraDet, x: Tensor) -> Tensor:
    return network._pos_embed(network.patch_embed(x))


def _embed_sam(network: VisionTransformerSAM, x: Tensor) -> Tensor:
    x = network.patch_embed(x)
    if network.pos_embed is not None:
        x = x + resample_abs_pos_embed_nhwc(network.pos_embed, x.shape[1:3])
    return network.norm_pre(network.patch_drop(network.pos_drop(x)))


def _neck(network: VisionTransformerSAM, x: Tensor) -> Tensor:
    return network.neck(x.permute(0, 3, 1, 2))

"""Swin: a patch embedding and four layers over maps with channels last (B, H, W, C)."""

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, chain


def recognise(network: nn.Module) -> bool:
    """timm's Swin and Swin-V2 classes."""
    return isinstance(network, SwinTransformer | SwinTransformerV2)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Its own layers; since timm 0.9 a layer opens with patch merging, so stage 4 takes the 14x14 map."""
    layers = tuple(_layer(network, f"layers.{name}") for name, _ in network.layers.named_children())
    return Parts(chain("patch_embed"), layers, call("norm"), call("forward_head"), channels_last=True)


def _layer(network: nn.Module, name: str) -> Piece:
    """A layer, which its patch merging opens."""
    # The merging apart from the blocks: PAT's prompts stand between the two.
    whole, count = chain(name), len(network.get_submodule(f"{name}.blocks"))
    blocks = chain(*(f"{name}.blocks.{index}" for index in range(count)))
    return Piece(whole.run, whole.owns, opening=chain(f"{name}.downsample").run, rest=blocks.run)

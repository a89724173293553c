"""MLP-Mixer, ResMLP and gMLP: equal blocks over patch tokens, no class token."""

from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from fbt_core.staged.base import Parts, call, chain, each


def recognise(network: nn.Module) -> bool:
    """timm's MlpMixer class, which all of them share."""
    return isinstance(network, MlpMixer)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by the split."""
    return Parts(chain("stem"), each(network, "blocks"), call("norm"), call("forward_head"))

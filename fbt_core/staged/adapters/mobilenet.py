"""MobileNet V1, V2 and the EfficientNets: conv_stem, blocks by resolution, conv_head in the last stage."""

from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from fbt_core.staged.base import Parts, call, chain, each, unchanged


def recognise(network: nn.Module) -> bool:
    """timm builds all of them as EfficientNet."""
    return isinstance(network, EfficientNet)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Blocks are dealt by resolution; the first one, at half the image's, falls to the stem."""
    body = (*each(network, "blocks"), chain("conv_head", "bn2"))
    return Parts(chain("conv_stem", "bn1"), body, unchanged, call("forward_head"))

"""ConvNeXt: a patch stem and four stages; the head normalises after its pooling."""

from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fbt_core.staged.base import Parts, call, chain, each


def recognise(network: nn.Module) -> bool:
    """timm's ConvNeXt class."""
    return isinstance(network, ConvNeXt)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Its own stages, each opened by its downsampling."""
    return Parts(chain("stem"), each(network, "stages"), call("norm_pre"), call("forward_head"))

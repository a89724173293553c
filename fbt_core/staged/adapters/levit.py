"""LeViT: a convolutional stem, then three resolutions of blocks over tokens without class token."""

from timm.models.levit import Levit
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, chain, each, unchanged


def recognise(network: nn.Module) -> bool:
    """timm's Levit class."""
    return isinstance(network, Levit)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Downsamplings and blocks by resolution; the longest of the three resolutions makes two stages."""
    body: list[Piece] = []
    for index in range(len(network.stages)):
        body += [chain(f"stages.{index}.downsample"), *each(network, f"stages.{index}.blocks")]
    return Parts(Piece(_embed, ("stem",)), tuple(body), unchanged, call("forward_head"))


def _embed(network: Levit, x: Tensor) -> Tensor:
    x = network.stem(x)
    return x if network.use_conv else x.flatten(2).transpose(1, 2)

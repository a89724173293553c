"""ResNet and its descendants: conv1, pooling, layer1..layer4."""

from torch import Tensor, nn

from fbt_core.staged.base import Parts, call, chain, unchanged

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def recognise(network: nn.Module) -> bool:
    """Four layers after a conv1 and a maxpool."""
    return all(hasattr(network, name) for name in ("conv1", "bn1", "act1", "maxpool", *LAYERS))


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Each layer is a stage; nothing stands between the last one and the pooling."""
    stem = chain("conv1", "bn1", "act1", "maxpool")
    return Parts(stem, tuple(chain(name) for name in LAYERS), unchanged, call("forward_head"))

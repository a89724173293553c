"""Twins: four stages that each embed a map as tokens and give a map; the last one gives tokens."""

from timm.models.twins import Twins
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, unchanged

STAGES = 4


def recognise(network: nn.Module) -> bool:
    """timm's Twins class."""
    return isinstance(network, Twins)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Its own stages, spread over four module lists; there is no stem."""
    body = tuple(_stage(index) for index in range(STAGES))
    return Parts(Piece(unchanged, ()), body, call("norm"), call("forward_head"))


def _stage(index: int) -> Piece:
    def run(network: Twins, x: Tensor) -> Tensor:
        x, size = network.patch_embeds[index](x)
        x = network.pos_drops[index](x)
        for number, block in enumerate(network.blocks[index]):
            x = block(x, size)
            # The position encoding stands behind the first block, as in the network's own forward.
            x = network.pos_block[index](x, size) if number == 0 else x
        # A map between stages, because each stage embeds one again; the last gives tokens to the norm.
        if index == len(network.blocks) - 1:
            return x
        return x.unflatten(1, size).permute(0, 3, 1, 2).contiguous()

    return Piece(
        run, tuple(f"{name}.{index}" for name in ("patch_embeds", "pos_drops", "blocks", "pos_block"))
    )

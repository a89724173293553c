"""Visformer: three resolutions, each opened by a patch embedding and a position embedding."""

from timm.models.visformer import Visformer
from torch import Tensor, nn

from fbt_core.staged.base import Parts, Piece, call, chain, each, present, unchanged


def recognise(network: nn.Module) -> bool:
    """timm's Visformer class."""
    return isinstance(network, Visformer)


def cut(network: nn.Module, image: Tensor) -> Parts:
    """Embeddings and blocks by resolution; the longest of the three resolutions makes two stages."""
    stem = chain("stem") if network.stem is not None else Piece(unchanged, ())
    body: list[Piece] = []
    for index in (1, 2, 3):
        owned = present(network, f"patch_embed{index}", f"pos_embed{index}")
        body += [Piece(_embedding(index), owned), *each(network, f"stage{index}")]
    return Parts(stem, tuple(body), call("norm"), call("forward_head"))


def _embedding(index: int):
    def run(network: Visformer, x: Tensor) -> Tensor:
        embed, positions = getattr(network, f"patch_embed{index}"), getattr(network, f"pos_embed{index}")
        x = x if embed is None else embed(x)
        return x if positions is None else network.pos_drop(x + positions)

    return run

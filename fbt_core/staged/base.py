"""The words in which an adapter describes a network, and what one staged pass gives back.

An adapter (a file in fbt_core/staged/adapters) states the parts of a network: a stem, a body of pieces that
no cut divides, a norm and a head. One after the other they are the network, to the last bit:

>>> import timm, torch
>>> from fbt_core.staged.model import StagedModel
>>> network = timm.create_model("test_resnet", num_classes=10).eval()
>>> layers = tuple(chain(f"layer{number}") for number in (1, 2, 3, 4))
>>> parts = Parts(chain("conv1", "bn1", "act1", "maxpool"), layers, norm=unchanged, head=call("forward_head"))
>>> images = torch.randn(2, 3, 32, 32)
>>> with torch.no_grad():
...     staged = StagedModel(network, parts, images[:1], split="even")
...     output = staged.features(images)
...     torch.equal(output.logits, network(images))
True
>>> [shape.grid for shape in staged.shapes], output.stages[3].shape[1], tuple(output.pooled.shape)
([(8, 8), (4, 4), (2, 2), (1, 1)], 96, (2, 96))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fbt_core.errors import UserError

Layout = Literal["nchw", "nhwc", "tokens"]
Step = Callable[[Any, Tensor], Tensor]
"""A part of a network's forward: step(network, x). The network is an argument, so that a copy of a
StagedModel runs on its own copy, and a module that was replaced (SyncBatchNorm) is found."""


class UnknownStructure(UserError):  # noqa: N818
    """A network that no adapter can cut; the message names its children and what an adapter must provide.

    `tried` says in short what each adapter ran into.
    """

    def __init__(self, message: str, tried: str = "") -> None:
        super().__init__(message)
        self.tried = tried


@dataclass(frozen=True)
class FeatureShape:
    """What a feature tensor looks like: its layout, width (channels), grid (height, width) and prefix tokens.

    Shapes: nchw (B, C, H, W); nhwc (B, H, W, C); tokens (B, prefix + H*W, C).
    """

    layout: Layout
    width: int
    grid: tuple[int, int]
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """The smallest part that a cut may not divide: what it does, and the names of what it uses.

    `opening` is what it does before its first block, if that changes the grid (Swin's patch merging), `rest`
    all after that: something may stand between the two.
    """

    run: Step
    owns: tuple[str, ...]
    opening: Step | None = None
    rest: Step | None = None


@dataclass(frozen=True)
class Parts:
    """What an adapter says about a network; how the body's pieces become four stages is not its business.

    `norm` is what the network does between its last stage and its pooling; `head` goes from there to the
    logits exactly as the network does. `channels_last`: four-dimensional features are (B, H, W, C).
    """

    stem: Piece
    body: tuple[Piece, ...]
    norm: Step
    head: Step
    channels_last: bool = False
    prefix_tokens: int = 0


@dataclass
class StagedOutput:
    """One pass: `stages` (four features in their own layouts), `pooled` (B, D), `logits` (B, classes).

    `normed` is the last feature after the network's last norm. If the network was asked to keep them,
    `preactivations` are the stages' features before their last ReLU, and `stem` is what stage 1 takes.
    """

    stages: list[Tensor]
    pooled: Tensor
    logits: Tensor
    normed: Tensor | None = None
    preactivations: list[Tensor] | None = None
    stem: Tensor | None = None


def chain(*names: str) -> Piece:
    """The named modules of the network, one after the other, as one piece."""

    def run(network: nn.Module, x: Tensor) -> Tensor:
        for name in names:
            x = network.get_submodule(name)(x)
        return x

    return Piece(run, names)


def each(network: nn.Module, name: str) -> tuple[Piece, ...]:
    """Every child of the named module as a piece of its own."""
    return tuple(chain(f"{name}.{child}") for child, _ in network.get_submodule(name).named_children())


def call(name: str) -> Step:
    """The step that calls the network's method or module of this name."""
    return lambda network, x: getattr(network, name)(x)


def unchanged(network: nn.Module, x: Tensor) -> Tensor:
    """The step that does nothing."""
    return x


def present(network: nn.Module, *names: str) -> tuple[str, ...]:
    """Those of the names that the network has; timm sets optional parts to None."""
    return tuple(name for name in names if getattr(network, name, None) is not None)


def pieces(
    network: nn.Module, name: str, run: Callable[[Any, nn.Module, Tensor], Tensor]
) -> tuple[Piece, ...]:
    """Every child of the named module as a piece that does run(network, child, x)."""

    def piece(full: str) -> Piece:
        return Piece(lambda network, x: run(network, network.get_submodule(full), x), (full,))

    return tuple(piece(f"{name}.{child}") for child, _ in network.get_submodule(name).named_children())


def in_front(token: Tensor, x: Tensor) -> Tensor:
    """The token (1, P, C) in front of every image's tokens (B, N, C)."""
    return torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1)

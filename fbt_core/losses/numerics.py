"""Losses are computed in float32, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

SHORTEST = 1e-4
"""A shorter vector has no direction: as a unit vector it is zero and gets no gradient. So no gradient grows
by more than 1 / SHORTEST, which float16 can hold."""


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: half-precision inputs become float32 and autocast is off inside the loss.

    The first positional argument must be a tensor; float64 inputs keep their precision.
    """

    @wraps(loss)
    def run(*inputs: Any, **options: Any) -> Tensor:
        # Autocast off: it would turn products inside the loss back into half precision.
        with torch.autocast(inputs[0].device.type, enabled=False):
            return loss(*map(_widen, inputs), **{name: _widen(value) for name, value in options.items()})

    return run


def unit_rows(features: Tensor) -> Tensor:
    """Each row (B, D) at length 1; a row shorter than SHORTEST, e.g. of a dead ReLU, is zero."""
    lengths = features.norm(dim=1, keepdim=True)
    # Clamped before the division: torch.where passes gradients of both branches, and 0 * inf is NaN.
    return torch.where(lengths >= SHORTEST, features / lengths.clamp(min=SHORTEST), 0)


def _widen(value: Any) -> Any:
    """A half-precision tensor as float32; anything else as it is."""
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value

"""Losses are computed in float32, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

SHORTEST = 1e-6
"""Shorter vectors are not made longer than vector / SHORTEST: their gradient would be beyond any scale."""


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: half-precision inputs become float32 and autocast is off inside the loss.

    The first positional argument must be a tensor; float64 inputs keep their precision.
    """

    @wraps(loss)
    def run(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return loss(*map(_widen, inputs), **{name: _widen(value) for name, value in options.items()})

    return run


def unit_rows(features: Tensor) -> Tensor:
    """Each row (B, D) at length 1."""
    return functional.normalize(features, dim=1, eps=SHORTEST)


def _widen(value: Any) -> Any:
    """A half-precision tensor as float32; anything else as it is."""
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value

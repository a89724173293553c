"""Losses on labels: hard classes, or the soft targets that mixup and cutmix make."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from fbt_core.losses.numerics import in_float32


@in_float32
def cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with labels, mean over the batch.

    logits (B, C); target (B,) classes, or (B, C) probabilities. Smoothing is applied to hard targets only:
    mixup has already smoothed the soft ones (Szegedy et al. 2016, section 7).
    """
    # torch smooths soft targets too if it is asked to, and mixup has done so already.
    if target.dim() == 2:
        return functional.cross_entropy(logits, target.to(logits.dtype))
    return functional.cross_entropy(logits, target, label_smoothing=smoothing)


def target_class(target: Tensor) -> Tensor:
    """The class (B,) of each image: as it is, or the heaviest class of a soft target (B, C)."""
    return target.argmax(dim=1) if target.dim() == 2 else target

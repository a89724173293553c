"""InfoNCE between two views of the same images: FBT, FitNet's fourth variant and the low-pass method."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from fbt_core.losses.numerics import in_float32, unit_rows

Direction = Literal["symmetric", "one_way"]


@in_float32
def info_nce(learner: Tensor, source: Tensor, temperature: Tensor | float, direction: Direction) -> Tensor:
    """Pulls the two features of one image together and pushes those of different images apart.

    learner, source (B, D), L2-normalised here; the positive of row b is column b, its negatives the other
    B - 1 images. `one_way`: each learner feature picks its source; `symmetric`: the mean of both ways.
    van den Oord et al. 2018, equation 4.
    """
    # Unit vectors: the product is the cosine, and the temperature alone sets the scale.
    similarity = unit_rows(learner) @ unit_rows(source).t() / temperature
    # Every other image of the batch is a negative; cross-entropy over a row is InfoNCE itself.
    positives = torch.arange(len(similarity), device=similarity.device)
    one_way = functional.cross_entropy(similarity, positives)
    if direction == "one_way":
        return one_way
    return (one_way + functional.cross_entropy(similarity.t(), positives)) / 2

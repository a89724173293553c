"""Numbers for what the eye sees in a feature: where its energy lies, how local it is, how alike two are.

All functions are pure; maps are (B, C, H, W), drawings of energy (B, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def standardise(feature: Tensor) -> Tensor:
    """Every channel of (B, C, H, W) at mean 0, deviation 1 over images and positions; dead ones are 0."""
    # bfloat16 features of a network would lose the small deviations.
    feature = feature.float()
    mean = feature.mean((0, 2, 3), keepdim=True)
    deviation = feature.std((0, 2, 3), keepdim=True, unbiased=False)
    # A dead channel has no deviation: divided by almost nothing, its rounding would look like energy.
    return torch.where(
        deviation > 1e-6, (feature - mean) / deviation.clamp_min(1e-6), torch.zeros_like(feature)
    )


def pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (..., H, W) averaged onto a grid (h, w), so that networks of unlike resolution can be compared."""
    return maps if maps.shape[-2:] == grid else F.adaptive_avg_pool2d(maps, grid)


def energy_maps(standardised: Tensor) -> Tensor:
    """(B, H, W): mean absolute activation over the channels, the usual picture of a feature."""
    return standardised.abs().mean(1)


def group_maps(standardised: Tensor, groups: int = 3) -> Tensor:
    """(B, groups, H, W): the energy of each of `groups` runs of neighbouring channels."""
    # tensor_split allows a width that the groups do not divide.
    parts = torch.tensor_split(standardised, groups, dim=1)
    return torch.stack([energy_maps(part) for part in parts], dim=1)


def spatial_entropy(maps: Tensor) -> Tensor:
    """(B,): entropy of where the energy lies over its maximum; 1 = spread evenly, 0 = all in one position.

    Shape (B, H, W), values >= 0. A map without energy counts as even; a single position as 1.
    """
    # In float64: shares of many positions are small, and their logarithms are summed.
    flat = maps.flatten(1).double()
    positions = flat.shape[1]
    # The maximum is log 1 = 0, and nothing may be divided by it.
    if positions == 1:
        return torch.ones(len(flat), dtype=torch.double)
    total = flat.sum(1, keepdim=True)
    # Clamped although the branch is not taken: a division by zero would warn, or be NaN.
    share = torch.where(total > 0, flat / total.clamp_min(1e-30), torch.full_like(flat, 1 / positions))
    entropy = -(share * share.clamp_min(1e-30).log()).sum(1)
    return entropy / torch.log(torch.tensor(float(positions), dtype=torch.double))


def locality(standardised: Tensor) -> float:
    """How much more alike neighbouring positions are than positions at large (cosine, -2..2): local > global.

    A network whose positions all say the same has 0; NaN if the grid has fewer than 2 x 2 positions.
    """
    if min(standardised.shape[2:]) < 2:
        return float("nan")
    # Cosines: how strong a feature is says nothing about how alike two positions are.
    unit = F.normalize(standardised, dim=1)
    right = (unit[..., :, 1:] * unit[..., :, :-1]).sum(1).flatten(1)
    below = (unit[..., 1:, :] * unit[..., :-1, :]).sum(1).flatten(1)
    # Less the mean over all pairs: features that are the same everywhere are alike, but not local.
    neighbours = torch.cat([right, below], dim=1).mean(1)
    return float((neighbours - _mean_over_pairs(unit)).mean())


def _mean_over_pairs(unit: Tensor) -> Tensor:
    """(B,): mean cosine of all pairs of different positions, from sums (no matrix of pairs)."""
    # (sum x)^2 = sum x^2 + all pairs: linear in the number of positions, a matrix would be quadratic.
    flat = unit.flatten(2)
    positions = flat.shape[2]
    squares = (flat**2).sum((1, 2))
    return ((flat.sum(2) ** 2).sum(1) - squares) / (positions * (positions - 1))


def group_similarity(groups: Tensor) -> float:
    """Mean correlation over positions of the group maps (B, G, H, W): 1 = all light the same positions."""
    flat = groups.flatten(2)
    # Centred over positions, so that the product of unit vectors is a correlation.
    flat = flat - flat.mean(2, keepdim=True)
    unit = F.normalize(flat, dim=2, eps=1e-8)
    products = unit @ unit.transpose(1, 2)
    count = products.shape[1]
    # A group correlates with itself by 1, which says nothing.
    off_diagonal = products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
    return float((off_diagonal / (count * (count - 1))).mean())


class SimilarityMatrix:
    """Linear CKA of all pairs of two networks' features, summed over batches (Nguyen et al., ICLR 2021).

    Each batch adds its unbiased HSIC (Song et al., JMLR 2012): its expected value does not hang on the batch
    size, and no feature is held for more than one batch.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.cross = torch.zeros(rows, columns, dtype=torch.double)
        self.own_rows = torch.zeros(rows, dtype=torch.double)
        self.own_columns = torch.zeros(columns, dtype=torch.double)

    def add(self, rows: Iterable[Tensor], columns: Iterable[Tensor]) -> None:
        """Take one batch: features (B, ...) of the same images, at least four of them."""
        # Gram matrices once per feature: each is used for all pairs.
        left, right = [centred_gram(x) for x in rows], [centred_gram(x) for x in columns]
        for i, first in enumerate(left):
            self.own_rows[i] += unbiased_hsic(first, first)
            for j, second in enumerate(right):
                self.cross[i, j] += unbiased_hsic(first, second)
        for j, second in enumerate(right):
            self.own_columns[j] += unbiased_hsic(second, second)

    def value(self) -> Tensor:
        """(rows, columns): CKA from about 0 (nothing shared) to 1 (the same up to rotation and scale)."""
        # An unbiased estimate may be negative, and has no root then.
        scale = (self.own_rows[:, None] * self.own_columns[None, :]).clamp_min(0).sqrt()
        return torch.where(
            scale > 0, self.cross / scale.clamp_min(1e-30), torch.full_like(scale, float("nan"))
        )


def centred_gram(feature: Tensor) -> Tensor:
    """(B, B) products between images, of features centred over the batch (a float64 Gram matrix)."""
    flat = feature.flatten(1).float()
    flat = flat - flat.mean(0, keepdim=True)
    flat = flat / flat.norm().clamp_min(1e-12)  # CKA ignores scale; this keeps the sums in range
    return (flat @ flat.T).double().cpu()


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC of two Gram matrices (B, B), B >= 4 (Song et al. 2012, equation 5)."""
    size = len(first)
    # Without the diagonal: it is what biases the estimate (Song et al. 2012).
    first, second = first.clone().fill_diagonal_(0), second.clone().fill_diagonal_(0)
    trace = (first * second).sum()
    product = first.sum() * second.sum() / ((size - 1) * (size - 2))
    rows = 2 * (first.sum(0) * second.sum(0)).sum() / (size - 2)
    return (trace + product - rows) / (size * (size - 3))

"""Intervals for differences of accuracies, with seeds and test images as the two sources of chance.

A cell's outcome is a table of zeros and ones: `correct[s, i]` says whether the run with seed s classifies
test image i rightly. Two cells are compared image by image and seed by seed, d[s, i] = better[s, i] -
than[s, i], so what makes an image hard for both, or a seed lucky for both, cancels.

Seeds and images are crossed random effects: d[s, i] = mean + seed[s] + image[i] + rest[s, i]. The variance
of the mean follows from the three mean squares of the two-way layout without replication,

    V = (MS_seeds + MS_images - MS_rest) / (seeds x images),

and its degrees of freedom from Satterthwaite's rule (F. E. Satterthwaite, Biometrics Bulletin 2, 1946).
With one seed only images vary: V = variance of d over images / images. Such an interval holds for that one
seed; it leaves out what another seed would give, and whoever shows it says so. The teacher is trained once,
so its chance is in no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
Outcomes = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean in percentage points with its standard error; `sources` says what varied: seeds, images."""

    mean: float
    error: float
    freedom: float
    sources: tuple[str, ...]

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The two-sided interval at this confidence."""
        reach = 0.0
        if self.error:
            reach = self.error * float(stats.t.ppf(0.5 + confidence / 2, self.freedom))
        return self.mean - reach, self.mean + reach

    def p_above(self, threshold: float) -> float:
        """The p-value of `the mean is not above the threshold`: small means that it is above."""
        # No variance, e.g. two runs with the same predictions: there is no t to look up.
        if self.error == 0:
            return 0.0 if self.mean > threshold else 1.0
        return float(stats.t.sf((self.mean - threshold) / self.error, self.freedom))

    def p_below(self, threshold: float) -> float:
        """The p-value of `the mean is not below the threshold`: small means that it is below."""
        mirrored = Estimate(-self.mean, self.error, self.freedom, self.sources)
        return mirrored.p_above(-threshold)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """The mean of values[seed, image] (in percentage points) and how sure it is."""
    seeds, images = values.shape
    mean = float(values.mean())
    of_images = values.mean(axis=0)
    if seeds == 1:
        error = math.sqrt(float(of_images.var(ddof=1)) / images)
        return Estimate(mean, error, images - 1, ("images",))
    # A plain standard error over all values would count each image once for every seed.
    of_seeds = values.mean(axis=1)
    squares_seeds = images * float(of_seeds.var(ddof=1))
    squares_images = seeds * float(of_images.var(ddof=1))
    rest = values - of_seeds[:, None] - of_images[None, :] + mean
    squares_rest = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    # The difference of mean squares can come out too small by chance: it is never less than either source
    # alone.
    total = max(squares_seeds + squares_images - squares_rest, squares_seeds, squares_images)
    parts = (squares_seeds**2 / (seeds - 1), squares_images**2 / (images - 1))
    freedom = total**2 / sum(parts) if total else float(seeds - 1)
    return Estimate(mean, math.sqrt(total / (seeds * images)), max(freedom, 1.0), ("seeds", "images"))


def difference(better: Outcomes, than: Outcomes) -> Estimate:
    """The difference of two cells' accuracies, (seeds, images) each, paired by seed and image.

    Raises ValueError if the shapes differ: seeds and images must be the same, in the same order.
    """
    if better.shape != than.shape:
        raise ValueError(f"outcomes of {better.shape} and {than.shape} (seeds, images) cannot be paired")
    return estimate(100.0 * (better.astype(np.float64) - than.astype(np.float64)))


def unpaired_difference(better: Sequence[float], than: Sequence[float], images: int) -> Estimate:
    """The same from top-1 values (percent, one per seed) alone, if runs kept no predictions.

    Images cannot be paired, so each side brings its own binomial variance: wider than the paired interval,
    and never too narrow, as the same images make both sides vary in the same direction.
    """
    mean = float(np.mean(better) - np.mean(than))
    variance = sum(binomial_error(float(np.mean(side)), images) ** 2 for side in (better, than))
    # The smaller side: its degrees of freedom are the fewer.
    seeds = min(len(better), len(than))
    if seeds == 1:
        return Estimate(mean, math.sqrt(variance), images - 1, ("images",))
    of_seeds = sum(float(np.var(side, ddof=1)) / len(side) for side in (better, than))
    total = variance + of_seeds
    freedom = seeds - 1.0
    if total:
        freedom = total**2 / (of_seeds**2 / (seeds - 1) + variance**2 / (images - 1))
    return Estimate(mean, math.sqrt(total), max(freedom, 1.0), ("seeds", "images"))


def binomial_error(top1: float, images: int) -> float:
    """Standard error (percentage points) of an accuracy (percent) that was measured on so many images."""
    share = min(max(top1 / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / images)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # Corrected values never fall in this order: a claim cannot be surer than one with a smaller p-value.
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(highest, 1.0)
    return corrected


def smallest_difference(
    seeds: int, images: int, seed_deviation: float, disagreement: float, power: float = 0.8
) -> float:
    """The smallest true difference (points) that so many seeds and images show with this power.

    `seed_deviation`: standard deviation (points) of a paired difference over seeds; `disagreement`: share of
    images that two runs judge differently, half of it the same images for every seed. One seed: images alone.
    """
    of_image = of_rest = 100**2 * disagreement / 2
    if seeds == 1:
        variance, freedom = (of_image + of_rest) / images, images - 1.0
    else:
        # The expected mean squares of the two-way layout that `estimate` forms.
        squares_seeds = images * seed_deviation**2 + of_rest
        squares_images = seeds * of_image + of_rest
        total = squares_seeds + squares_images - of_rest
        variance = total / (seeds * images)
        freedom = total**2 / (squares_seeds**2 / (seeds - 1) + squares_images**2 / (images - 1))
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) + stats.t.ppf(power, freedom)
    return float(reach * math.sqrt(variance))

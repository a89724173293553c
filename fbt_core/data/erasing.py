"""Random erasing (Zhong et al., AAAI 2020) of a whole batch at a time, with the distribution of timm's."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ATTEMPTS = 10
AREA = (0.02, 1 / 3)
"""Share of the image that a rectangle covers; with the aspect ratio timm's defaults."""
ASPECT = (0.3, 1 / 0.3)


class Erasing:
    """Fills a rectangle of some images with normal noise, in place.

    What is drawn for an image depends on Python's random state and its row in the whole batch, not on which
    process holds it. On GPUs the noise itself comes from each process's own generator.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, images: Tensor, rows: Sequence[int]) -> None:
        """Images (B, C, H, W); `rows` (B,) are their numbers in the whole batch of all processes."""
        # One draw for the whole batch: every process makes it, so their random states stay equal.
        seed = random.getrandbits(32)
        rectangles = draw_rectangles(seed, rows, images.shape[2:], self.probability)
        if images.device.type == "cuda":
            fill_by_mask(images, rectangles)
        else:
            fill_each(images, rectangles, seed, rows)


def draw_rectangles(seed: int, rows: Sequence[int], side: Sequence[int], probability: float) -> np.ndarray:
    """Rectangles (B, 4: top, left, height, width) in images of this height and width; all 0 = nothing erased.

    An area and an aspect ratio are drawn up to ten times until the rectangle is smaller than the image.
    """
    height, width = side
    # Numbers fill the array row by row: a row's do not depend on how many rows follow.
    drawn = np.random.default_rng(seed).random((max(rows) + 1, 3 + 2 * ATTEMPTS))[list(rows)]
    chosen, position, attempts = drawn[:, 0] <= probability, drawn[:, 1:3], drawn[:, 3:]
    area = (AREA[0] + (AREA[1] - AREA[0]) * attempts[:, :ATTEMPTS]) * height * width
    # Uniform in the logarithm, as in timm: tall and wide rectangles are equally likely.
    low, high = np.log(ASPECT)
    aspect = np.exp(low + (high - low) * attempts[:, ATTEMPTS:])
    tall, wide = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (tall < height) & (wide < width)
    first, numbers = fits.argmax(1), np.arange(len(drawn))
    tall, wide = tall[numbers, first], wide[numbers, first]
    top = (position[:, 0] * (height - tall + 1)).astype(int)
    left = (position[:, 1] * (width - wide + 1)).astype(int)
    rectangles = np.stack([top, left, tall, wide], 1)
    # Zero height and width are no rectangle, so no second array has to say which images stay.
    rectangles[~(chosen & fits.any(1))] = 0
    return rectangles


def fill_each(images: Tensor, rectangles: np.ndarray, seed: int, rows: Sequence[int]) -> None:
    """One rectangle after the other: on a CPU noise for all pixels would take longer than the network."""
    generator = torch.Generator()
    for i in np.flatnonzero(rectangles[:, 2]).tolist():
        top, left, height, width = rectangles[i].tolist()
        # A generator per image, seeded by its row: another number of processes fills the same noise.
        generator.manual_seed(seed + rows[i])
        images[i, :, top : top + height, left : left + width].normal_(generator=generator)


def fill_by_mask(images: Tensor, rectangles: np.ndarray) -> None:
    """All rectangles at once: as many operations for a large batch as for a small one."""
    device = images.device
    corners = torch.from_numpy(rectangles).to(device, non_blocking=True)  # the GPU is not waited for
    top, left, height, width = corners.T[..., None]
    # Coordinates are compared, without a loop: each slice would be an operation of its own for every image.
    y = torch.arange(images.shape[2], device=device)
    x = torch.arange(images.shape[3], device=device)
    inside_rows, inside_columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    mask = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    # Noise for all pixels: no shape depends on what was drawn, so the GPU is not waited for.
    torch.where(mask, torch.randn_like(images), images, out=images)

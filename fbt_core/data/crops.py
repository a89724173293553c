"""Random resized crops as timm draws them, drawn for a whole batch at a time and cut in torch's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
INTERPOLATIONS = ("bilinear", "bicubic")
"""timm's train_interpolation `random` chooses between these two."""


class Crops(NamedTuple):
    """What is drawn for random resized crops (N,) before the images' sizes are known.

    Ten attempts each at a share of the area and an aspect ratio (N, 10), a position (N, 2) in 0..1, and the
    filter, a number of INTERPOLATIONS (N,).
    """

    share: np.ndarray
    ratio: np.ndarray
    position: np.ndarray
    filters: np.ndarray

    def of(self, rows: list[int] | slice) -> Crops:
        """The draws for some of the images."""
        return Crops(self.share[rows], self.ratio[rows], self.position[rows], self.filters[rows])

    def boxes(self, sides: np.ndarray) -> np.ndarray:
        """Boxes (N, 4: top, left, height, width) in images of these heights and widths (N, 2) or (2,).

        The first attempt whose box fits counts; if none does, the largest centred box of an allowed ratio.
        """
        # Broadcast: images of a small data set share one size, those of a folder have one each.
        sides = np.broadcast_to(sides, (len(self.share), 2))
        height, width = sides[:, :1], sides[:, 1:]
        area = self.share * height * width
        wide = np.rint(np.sqrt(area * self.ratio)).astype(int)
        high = np.rint(np.sqrt(area / self.ratio)).astype(int)
        fits = (wide <= width) & (high <= height)
        # argmax of booleans is the first True; if none is True it is 0, and the loop below replaces that box.
        first, rows = fits.argmax(1), np.arange(len(area))
        wide, high = wide[rows, first], high[rows, first]
        # A share of the free range, not a number of pixels: draws do not depend on the image's size.
        top = (self.position[:, 0] * (height[:, 0] - high + 1)).astype(int)
        left = (self.position[:, 1] * (width[:, 0] - wide + 1)).astype(int)
        boxes = np.stack([top, left, high, wide], 1)
        for i in np.flatnonzero(~fits.any(1)):
            boxes[i] = _centred(height[i].item(), width[i].item())
        return boxes


def centred_squares(sides: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of the largest square in the middle of images of these heights and widths (N, 2)."""
    edges = sides.min(1, keepdims=True)
    return np.hstack([(sides - edges) // 2, edges, edges])


def draw_crops(generator: np.random.Generator, count: int, scale: tuple[float, float]) -> Crops:
    """`count` draws with the distribution of timm's random resized crop."""
    shape = (count, ATTEMPTS)
    # All attempts at once, needed or not: else an image's draws would depend on those of the images before.
    share = generator.uniform(scale[0], scale[1], shape)
    # Uniform in the logarithm, as in timm: 3/4 and 4/3 are equally likely.
    ratio = np.exp(generator.uniform(np.log(RATIO[0]), np.log(RATIO[1]), shape))
    position = generator.random((count, 2))
    return Crops(share, ratio, position, generator.integers(len(INTERPOLATIONS), size=count))


def _centred(height: int, width: int) -> tuple[int, int, int, int]:
    # The side that limits the ratio is shortened, so that as much of the picture as possible stays.
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def cut(image: Tensor, box: np.ndarray) -> Tensor:
    """The part of an image (C, H, W) inside a box (top, left, height, width); shares its memory."""
    top, left, height, width = box.tolist()
    return image[:, top : top + height, left : left + width]


def resize_each(images: Iterable[Tensor], filters: np.ndarray, size: int) -> Tensor:
    """Images of any sizes resized to size x size with Pillow's filters, in torch's kernels for bytes.

    Shapes: images uint8 (C, H, W), asked for one at a time; filters (B,), numbers of INTERPOLATIONS -> uint8
    (B, C, size, size), channels last in memory. Rounding may move a pixel by a level or two from Pillow's.
    """
    output = torch.empty(0, dtype=torch.uint8)
    # Written into one block: a stack of separate images would copy all of them once more.
    for i, image in enumerate(images):
        if i == 0:
            shape = (len(filters), len(image), size, size)
            output = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        output[i : i + 1] = resize(image[None], size, INTERPOLATIONS[filters[i]])
    return output


def resize_whole(images: Tensor, size: int, enlarge: str) -> Tensor:
    """Uncropped images (B, C, H, W) at the network's input size: nearest pixel, or Pillow's bicubic."""
    times, rest = divmod(size, images.shape[2])
    if enlarge == "nearest" and rest == 0:  # whole blocks of one pixel: no filter needed
        images = images.contiguous()[:, :, :, None, :, None]
        return images.expand(-1, -1, -1, times, -1, times).reshape(len(images), -1, size, size)
    if enlarge == "nearest":
        return functional.interpolate(images, (size, size), mode="nearest-exact")
    return resize(images, size, enlarge)


def resize(images: Tensor, size: int, kind: str) -> Tensor:
    """Images (B, C, H, W) at another size, filtered as Pillow does."""
    return functional.interpolate(images, (size, size), mode=kind, antialias=True)

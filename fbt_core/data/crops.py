"""Random resized crops of small images as timm draws them, for a whole batch at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
INTERPOLATIONS = ("bilinear", "bicubic")
"""timm's train_interpolation `random` chooses between these two."""


def draw_boxes(
    generator: np.random.Generator, count: int, side: tuple[int, int], scale: tuple[float, float]
) -> np.ndarray:
    """`count` boxes (top, left, height, width) with the distribution of timm's random resized crop.

    An area and an aspect ratio are drawn up to ten times until the box fits; else the largest centred box
    of an allowed ratio is taken.
    """
    height, width = side
    shape = (count, ATTEMPTS)
    area = generator.uniform(*scale, shape) * height * width
    ratio = np.exp(generator.uniform(np.log(RATIO[0]), np.log(RATIO[1]), shape))
    wide = np.rint(np.sqrt(area * ratio)).astype(int)
    high = np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (wide <= width) & (high <= height)
    first, rows = fits.argmax(1), np.arange(count)
    wide, high = wide[rows, first], high[rows, first]
    position = generator.random((count, 2))
    top = (position[:, 0] * (height - high + 1)).astype(int)
    left = (position[:, 1] * (width - wide + 1)).astype(int)
    boxes = np.stack([top, left, high, wide], 1)
    boxes[~fits.any(1)] = _centred(side)
    return boxes


def _centred(side: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = side
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def resize_crops(images: Tensor, boxes: np.ndarray, size: int, kinds: np.ndarray) -> Tensor:
    """Each image's box resized to size x size with Pillow's filters, in torch's kernels for bytes.

    Shapes: images uint8 (B, C, H, W) -> uint8 (B, C, size, size), channels last in memory. `kinds` (B,)
    chooses bilinear or bicubic. A pixel differs from Pillow's by a level or two where rounding goes the
    other way.
    """
    shape = (len(images), images.shape[1], size, size)
    output = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    for i, (top, left, high, wide) in enumerate(boxes.tolist()):
        crop = images[i : i + 1, :, top : top + high, left : left + wide]
        output[i : i + 1] = resize(crop, size, INTERPOLATIONS[kinds[i]])
    return output


def resize_whole(images: Tensor, size: int, enlarge: str) -> Tensor:
    """Uncropped images (B, C, H, W) at the network's input size: nearest pixel, or Pillow's bicubic."""
    times, rest = divmod(size, images.shape[2])
    if enlarge == "nearest" and rest == 0:  # whole blocks of one pixel: no filter needed
        images = images.contiguous()[:, :, :, None, :, None]
        return images.expand(-1, -1, -1, times, -1, times).reshape(*images.shape[:2], size, size)
    if enlarge == "nearest":
        return functional.interpolate(images, (size, size), mode="nearest-exact")
    return resize(images, size, enlarge)


def resize(images: Tensor, size: int, kind: str) -> Tensor:
    """Images (B, C, H, W) at another size, filtered as Pillow does."""
    return functional.interpolate(images, (size, size), mode=kind, antialias=True)

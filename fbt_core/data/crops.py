"""Random resized crops of small images as timm draws them, for a whole batch at a time."""

from __future__ import annotations

import numpy as np
from PIL import Image

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
INTERPOLATIONS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
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
    place = generator.random((count, 2))
    top = (place[:, 0] * (height - high + 1)).astype(int)
    left = (place[:, 1] * (width - wide + 1)).astype(int)
    boxes = np.stack([top, left, high, wide], 1)
    boxes[~fits.any(1)] = _centred(side)
    return boxes


def _centred(side: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = side
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def resize_crops(images: np.ndarray, boxes: np.ndarray, size: int, kinds: np.ndarray) -> np.ndarray:
    """Each image's box resized to size x size, pixel for pixel as Pillow does it.

    Shapes: images uint8 (B, H, W, C) -> uint8 (B, size, size, C). `kinds` (B,) chooses bilinear or bicubic.
    """
    output = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for target, image, box, kind in zip(output, images, boxes.tolist(), kinds, strict=True):
        top, left, high, wide = box
        crop = picture_of(image[top : top + high, left : left + wide])
        target[:] = np.asarray(crop.resize((size, size), INTERPOLATIONS[kind])).reshape(target.shape)
    return output


def resize_whole(images: np.ndarray, size: int, enlarge: str) -> np.ndarray:
    """Uncropped images (B, H, W, C) at the network's input size: pixels repeated, or Pillow's bicubic."""
    times, rest = divmod(size, images.shape[1])
    if enlarge == "nearest" and not rest:
        return images.repeat(times, axis=1).repeat(times, axis=2)
    kind = Image.Resampling.NEAREST if enlarge == "nearest" else Image.Resampling.BICUBIC
    resized = [np.asarray(picture_of(image).resize((size, size), kind)) for image in images]
    return np.stack(resized).reshape(len(images), size, size, images.shape[3])


def picture_of(image: np.ndarray) -> Image.Image:
    """A grey or RGB picture from uint8 (H, W, 1 or 3)."""
    return Image.fromarray(np.ascontiguousarray(image.squeeze(2) if image.shape[2] == 1 else image))

"""A split of a dataset, in memory or on disk: labels, and any image as a picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fbt_core.data.pictures import ImageFile, Variety, look_at, open_picture
from fbt_core.errors import UserError


@dataclass(frozen=True)
class InMemory:
    """Small images held as bytes: `images` uint8 (N, H, W, 1 or 3), `labels` int64 (N,).

    `enlarge` says how an uncropped image reaches the network's input size.
    """

    images: np.ndarray
    labels: Tensor
    enlarge: Literal["nearest", "bicubic"]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: np.ndarray) -> InMemory:
        """The split of these images alone, numbered anew."""
        return InMemory(self.images[indices], self.labels[torch.from_numpy(indices)], self.enlarge)

    def picture(self, index: int) -> Image.Image:
        """Image number `index` as an RGB picture."""
        image = self.images[index]
        # Broadcast, not repeated: a grey image becomes RGB only when one is looked at.
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))


@dataclass(frozen=True)
class OnDisk:
    """Images read when they are needed: `names` are paths below `folder`, in a fixed order; labels (N,).

    The names are one array of bytes, not a list: loader processes share it and copy nothing.
    """

    folder: Path
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: np.ndarray) -> OnDisk:
        """The split of these images alone, numbered anew."""
        return OnDisk(self.folder, self.names[indices], self.labels[torch.from_numpy(indices)])

    def path(self, index: int) -> Path:
        """Where image number `index` lies."""
        # fsdecode undoes the fsencode of the loader, also for names that are no valid text.
        return self.folder / os.fsdecode(self.names[index])

    def picture(self, index: int) -> Image.Image:
        """Image number `index` as an RGB picture; a UserError names a file that is gone or damaged."""
        return open_picture(self.path(index))

    def file(self, index: int) -> ImageFile:
        """Image number `index` as it lies on the disk, for `ImageFile.pixels`."""
        return ImageFile(self.path(index))


Split = InMemory | OnDisk


def balanced_part(labels: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions of `count` images: the first of each class, then the second of each, and so on."""
    # By class and not at random: the part is the same on every machine, and no class is left out.
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank_in_class[of_class] = np.arange(of_class.sum())
    # Stable, and sorted again: of equal ranks the first images are taken, in the split's order.
    return np.sort(np.argsort(rank_in_class, kind="stable")[:count])


def blank_images(split: Split, sample: int = 64) -> str | None:
    """What is wrong if a sample of the split's images is blank or nearly one picture; None if nothing is."""
    variety = Variety()
    # Spread over the split: the first images of a sorted folder are all of one class.
    for index in np.unique(np.linspace(0, len(split) - 1, sample).astype(int)).tolist():
        variety.add(*look_at(split.picture(index)))
    return variety.problem()


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Refuse labels outside 0..classes-1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"labels range from {low} to {high}, expected 0 to {classes - 1}", where=where)


def check_count(count: int, expected: int, what: str, where: str, hint: str | None = None) -> None:
    """Refuse a split whose size is not what the dataset's entry promises."""
    if count != expected:
        raise UserError(f"found {count:,} {what}, expected {expected:,}", where=where, hint=hint)


def as_labels(values: list[int]) -> Tensor:
    """Labels as the engine wants them: int64 (N,)."""
    return torch.tensor(values, dtype=torch.int64)

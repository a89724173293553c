"""A small data set that stays on the device as bytes: images are cropped, flipped and resized there.

Draws are those of the loaders (transforms.py), and pixels are those of torch's kernels for bytes but for
rounding (a level or two of 255), so a run keeps its id. All images of a batch are resized at once, by two
products of matrices, whatever the size of their crops: a GPU gets as many operations for a large batch as for
a small one. What RandAugment and colour jitter do, timm does with Pillow: recipes with them keep the loaders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from fbt_core.data.crops import INTERPOLATIONS, resize_whole
from fbt_core.data.feed import Feed, Raw
from fbt_core.data.order import BatchKey
from fbt_core.data.splits import InMemory, Split
from fbt_core.data.transforms import Pipeline, TestBatches, TrainingBatches, as_tensor, changes_colours
from fbt_core.spec import ExecutionSettings, RunSpec

CUBIC = -0.5
"""Pillow's bicubic filter is Keys' (IEEE Trans. ASSP 1981, eq. 8) with this a."""


def keeps_on_device(spec: RunSpec, settings: ExecutionSettings) -> bool:
    """Whether a run's images stay on the device: if asked for, and if nothing is left to Pillow."""
    small = spec.dataset.loader != "image_folder"
    return settings.device_cache and small and not changes_colours(spec.recipe.augmentation)


def make_feed(
    split: Split, pipeline: Pipeline, spec: RunSpec, settings: ExecutionSettings, device: torch.device
) -> Feed | DeviceFeed:
    """Raw batches of a split by a pipeline, from the device or from loaders."""
    if not keeps_on_device(spec, settings):
        return Feed(split, pipeline, settings.workers, device)
    assert isinstance(split, InMemory) and isinstance(pipeline, TrainingBatches | TestBatches)
    return DeviceFeed(split, pipeline, device)


class DeviceFeed:
    """What Feed is, for a split on the device: its images as bytes (N, C, H, W) and its labels (N,)."""

    def __init__(
        self, split: InMemory, pipeline: TrainingBatches | TestBatches, device: torch.device
    ) -> None:
        self.pipeline, self.enlarge, self.device = pipeline, split.enlarge, device
        # Plane by plane: the products below walk along rows and columns of one channel.
        self.images = as_tensor(split.images).contiguous().to(device)
        self.labels = split.labels.to(device)

    def __call__(self, keys: Sequence[BatchKey]) -> Iterator[Raw]:
        """The keys' batches in order."""
        for key in keys:
            indices = self._to_device(np.array(key.indices))
            images = self.images[indices]
            if isinstance(self.pipeline, TestBatches):
                images = self._whole(images, self.pipeline)
            else:
                images = self._drawn(images, key, self.pipeline)
            yield Raw(images, self.labels[indices], indices)

    def _whole(self, images: Tensor, pipeline: TestBatches) -> Tensor:
        """Test images, or what a network's own crop leaves of them."""
        size, crop = pipeline.size, pipeline.crop
        if crop is None:
            return self._resized(images, size, self.enlarge)
        return center_crop(self._resized(images, int(size / crop.share), crop.interpolation), [size, size])

    def _drawn(self, images: Tensor, key: BatchKey, pipeline: TrainingBatches) -> Tensor:
        """Training images, flipped and cropped as drawn for the key's rows."""
        flips, crops = pipeline.draw(key)
        images = torch.where(self._to_device(flips).view(-1, 1, 1, 1), images.flip(-1), images)
        if pipeline.augmentation.crop_scale is None:
            return self._resized(images, pipeline.size, self.enlarge)
        boxes = crops.boxes(np.array(images.shape[2:]))
        cubic = crops.filters == INTERPOLATIONS.index("bicubic")
        return resize_boxes(images, self._to_device(boxes), self._to_device(cubic), pipeline.size)

    def _resized(self, images: Tensor, size: int, kind: str) -> Tensor:
        """Whole images at another size."""
        if kind == "nearest":
            return resize_whole(images, size, kind)
        boxes = torch.tensor([[0, 0, *images.shape[2:]]], device=self.device)
        return resize_boxes(images, boxes, torch.tensor([kind == "bicubic"], device=self.device), size)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def resize_boxes(images: Tensor, boxes: Tensor, cubic: Tensor, size: int) -> Tensor:
    """The parts of images inside boxes at size x size, filtered as Pillow does.

    Shapes: images uint8 (B, C, H, W); boxes (B, 4: top, left, height, width) in whole pixels; cubic (B,),
    whether the filter is bicubic, else bilinear -> uint8 (B, C, size, size). One box does for all images.
    """
    top, left, height, width = boxes.float().T
    down = filter_weights(top, height, cubic, size, images.shape[2])[:, None]
    across = filter_weights(left, width, cubic, size, images.shape[3])[:, None]
    # Rows first, and bytes in between, as Pillow and torch's kernels for bytes do.
    return as_bytes(down @ as_bytes(images.float() @ across.mT).float())


def filter_weights(start: Tensor, length: Tensor, cubic: Tensor, size: int, side: int) -> Tensor:
    """How much of each of `side` pixels goes into each of `size` new ones, (B, size, side); rows sum to one.

    The new pixels divide the stretch from `start` (B,) of this `length` (B,); pixels beyond it count nothing.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    device = start.device
    centres = start + (torch.arange(size, device=device).view(-1, 1) + 0.5) * (length / size)
    pixels = torch.arange(side, device=device) + 0.5
    # A smaller image: the filter is as much wider as pixels become fewer (antialiasing).
    distance = (pixels - centres).abs() / (length / size).clamp(min=1)
    linear = (1 - distance).clamp(min=0)
    near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    curve = torch.where(distance < 1, near, far.where(distance < 2, torch.zeros_like(far)))
    inside = (pixels > start) & (pixels < start + length)
    weights = torch.where(cubic.view(-1, 1, 1), curve, linear) * inside
    return weights / weights.sum(-1, keepdim=True)


def as_bytes(values: Tensor) -> Tensor:
    """Rounded to the nearest level, and cut off at 0 and 255."""
    return values.add(0.5).clamp(0, 255).to(torch.uint8)

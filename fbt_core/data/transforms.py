"""From a split's images to uint8 batches: the quick way for small images, timm's transforms for all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision.transforms.functional import center_crop

from fbt_core.data.crops import INTERPOLATIONS, draw_boxes, resize, resize_crops, resize_whole
from fbt_core.data.order import AUGMENT, BatchKey, generator, seed_everything
from fbt_core.data.splits import InMemory, Split
from fbt_core.spec import AugmentationSpec, CropSpec, DatasetSpec


class Pipeline(Protocol):
    """Makes a batch's images, uint8 (B, 1 or 3, size, size)."""

    def __call__(self, split: Split, key: BatchKey) -> Tensor: ...


class QuickTraining:
    """Crop and flip of in-memory images, drawn for the whole batch at once, with timm's distribution.

    `augment` is what timm does to a picture between flip and normalisation (RandAugment), one at a time.
    """

    def __init__(
        self,
        augmentation: AugmentationSpec,
        size: int,
        seed: int,
        augment: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self.augmentation, self.size, self.seed, self.augment = augmentation, size, seed, augment

    def __call__(self, split: InMemory, key: BatchKey) -> Tensor:
        rows, draws = list(key.rows), generator(self.seed, AUGMENT, key.epoch, key.step)
        flips = draws.random(key.whole)[rows] < self.augmentation.flip
        images = split.images[list(key.indices)]
        images[flips] = images[flips, :, ::-1]  # before they grow: a box is as likely as its mirror image
        images = self._sized(split, as_tensor(images), draws, key)
        return images if self.augment is None else self._augmented(images, key)

    def _augmented(self, images: Tensor, key: BatchKey) -> Tensor:
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
        for i, picture in enumerate(pixels):
            seed_everything(self.seed, AUGMENT, key.epoch, key.step, key.rows[i])
            pixels[i] = np.asarray(self.augment(Image.fromarray(picture)))
        return as_tensor(pixels)

    def _sized(self, split: InMemory, images: Tensor, draws: np.random.Generator, key: BatchKey) -> Tensor:
        if self.augmentation.crop_scale is None:
            return resize_whole(images, self.size, split.enlarge)
        rows = list(key.rows)
        boxes = draw_boxes(draws, key.whole, images.shape[2:], self.augmentation.crop_scale)[rows]
        kinds = draws.integers(len(INTERPOLATIONS), size=key.whole)[rows]
        return resize_crops(images, boxes, self.size, kinds)


class QuickTest:
    """In-memory images at the network's input size: whole, or their centre as timm cuts it."""

    def __init__(self, size: int, crop: CropSpec | None = None) -> None:
        self.size, self.crop = size, crop

    def __call__(self, split: InMemory, key: BatchKey) -> Tensor:
        images = as_tensor(split.images[list(key.indices)])
        if self.crop is None:
            return resize_whole(images, self.size, split.enlarge)
        resized = resize(images, int(self.size / self.crop.share), self.crop.interpolation)
        return center_crop(resized, [self.size, self.size])


def as_tensor(images: np.ndarray) -> Tensor:
    """Bytes (B, H, W, C) as a tensor (B, C, H, W) that shares them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class Pictures:
    """timm's transforms, one picture at a time; its draws depend on its epoch, step and row only."""

    def __init__(self, transform: Callable[[Image.Image], np.ndarray], seed: int) -> None:
        self.transform, self.seed = transform, seed

    def __call__(self, split: Split, key: BatchKey) -> Tensor:
        images = [self._image(split, key, i) for i in range(len(key.indices))]
        return torch.from_numpy(np.stack(images))

    def _image(self, split: Split, key: BatchKey, i: int) -> np.ndarray:
        if key.epoch is not None:
            seed_everything(self.seed, AUGMENT, key.epoch, key.step, key.rows[i])
        return self.transform(split.picture(key.indices[i]))


def training_pipeline(
    split: Split, dataset: DatasetSpec, augmentation: AugmentationSpec, seed: int
) -> Pipeline:
    """How a training batch is made; erasing and mixing follow on the device."""
    if not isinstance(split, InMemory):
        return Pictures(_timm_training(dataset, augmentation), seed)
    changes = augmentation.rand_augment or augmentation.color_jitter
    augment = _timm_training(dataset, augmentation, separate=True)[1] if changes else None
    return QuickTraining(augmentation, dataset.image_size, seed, augment)


def test_pipeline(split: Split, dataset: DatasetSpec, crop: CropSpec | None = None) -> Pipeline:
    """How a test batch is made; without a crop small images stay whole, others keep 0.875 of each side."""
    if isinstance(split, InMemory):
        return QuickTest(dataset.image_size, crop)
    crop = crop or CropSpec(share=0.875, interpolation="bicubic")
    options = {"interpolation": crop.interpolation, "crop_pct": crop.share, "use_prefetcher": True}
    return Pictures(transforms_imagenet_eval(dataset.image_size, **options), 0)


def _timm_training(dataset: DatasetSpec, augmentation: AugmentationSpec, separate: bool = False) -> Any:
    """timm's training transforms; as in timm, RandAugment replaces colour jitter.

    `separate` gives them in three parts: crop and flip, what changes the colours, what makes an array.
    """
    allow_posterize_to_zero_bits()
    whole = augmentation.crop_scale is None
    return transforms_imagenet_train(
        dataset.image_size,
        scale=augmentation.crop_scale or (1.0, 1.0),
        ratio=(1.0, 1.0) if whole else None,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.rand_augment,
        interpolation="random",
        mean=dataset.mean,
        use_prefetcher=True,
        separate=separate,
    )


def allow_posterize_to_zero_bits() -> None:
    """Let RandAugment keep 0 bits of a picture (all black, as older Pillow does): Pillow 13 refuses."""
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = posterize


def posterize(picture: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """The picture with its highest bits only; 0 bits are black, 8 and more the picture itself."""
    if bits_to_keep >= 8:
        return picture
    return (
        ImageOps.posterize(picture, bits_to_keep)
        if bits_to_keep >= 1
        else Image.new(picture.mode, picture.size)
    )

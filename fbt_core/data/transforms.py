"""From a split's images to uint8 batches, with the distribution and the pixels of timm's transforms."""

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

from fbt_core.data.crops import Crops, centred_squares, cut, draw_crops, resize, resize_each, resize_whole
from fbt_core.data.order import AUGMENT, BatchKey, generator, seed_everything
from fbt_core.data.splits import InMemory, OnDisk, Split
from fbt_core.spec import AugmentationSpec, CropSpec, DatasetSpec

FOLDER_CROP = CropSpec(share=0.875, interpolation="bicubic")
"""How images of a folder are tested if the spec names no crop."""


class Pipeline(Protocol):
    """Makes a batch's images, uint8 (B, 1 or 3, size, size)."""

    def __call__(self, split: Split, key: BatchKey) -> Tensor: ...


class TrainingBatches:
    """Crop and flip, drawn for the whole batch at once with timm's distribution, cut by torch's byte kernels.

    What is drawn for an image depends on the seed, the epoch, the step and its row in the whole batch only.
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

    def __call__(self, split: Split, key: BatchKey) -> Tensor:
        flips, crops = self.draw(key)
        if isinstance(split, InMemory):
            images = self._from_memory(split, key, flips, crops)
        else:
            images = self._from_disk(split, key, flips, crops)
        return images if self.augment is None else self._augmented(images, key)

    def draw(self, key: BatchKey) -> tuple[np.ndarray, Crops]:
        """Which of the key's images are flipped, (N,), and their crops (if uncropped, the filters)."""
        # One generator per step, and draws for the whole batch in it: a process then takes its rows.
        draws = generator(self.seed, AUGMENT, key.epoch, key.step)
        # Drawn before the crops, always: switching crops off changes no flip.
        flips = (draws.random(key.whole) < self.augmentation.flip)[list(key.rows)]
        # For the whole batch, then this process's rows: the number of GPUs changes no crop.
        scale = self.augmentation.crop_scale or (1.0, 1.0)
        return flips, draw_crops(draws, key.whole, scale).of(list(key.rows))

    def _from_memory(self, split: InMemory, key: BatchKey, flips: np.ndarray, crops: Crops) -> Tensor:
        # Fancy indexing copies, so the flip below does not touch the data set.
        pixels = split.images[list(key.indices)]
        pixels[flips] = pixels[flips, :, ::-1]  # before they grow: a box is as likely as its mirror image
        images = as_tensor(pixels)
        if self.augmentation.crop_scale is None:
            return resize_whole(images, self.size, split.enlarge)
        boxes = crops.boxes(np.array(images.shape[2:]))
        return resize_each(map(cut, images, boxes), crops.filters, self.size)

    def _from_disk(self, split: OnDisk, key: BatchKey, flips: np.ndarray, crops: Crops) -> Tensor:
        # Sizes are read from the headers first: boxes depend on them, and decoding is the expensive part.
        files = [split.file(index) for index in key.indices]
        boxes_of = crops.boxes if self.augmentation.crop_scale else centred_squares
        boxes = boxes_of(np.array([file.side for file in files]))

        # One image is decoded at a time: a batch of photographs would take a hundred megabytes.
        cuts = (cut(file.pixels(), box) for file, box in zip(files, boxes, strict=True))
        images = resize_each(cuts, crops.filters, self.size)
        # Flipped after resizing: 224 pixels cost less than a photograph's.
        for i in np.flatnonzero(flips).tolist():
            images[i] = images[i].flip(-1)
        return images

    def _augmented(self, images: Tensor, key: BatchKey) -> Tensor:
        # timm's operations take RGB pictures alone, so grey images are widened before them.
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
        for i, picture in enumerate(pixels):
            # Seeded per image: timm draws from Python's and numpy's generators, as often as an image needs.
            seed_everything(self.seed, AUGMENT, key.epoch, key.step, key.rows[i])
            pixels[i] = np.asarray(self.augment(Image.fromarray(picture)))
        return as_tensor(pixels)


class TestBatches:
    """In-memory images at the network's input size: whole, or their centre as timm cuts it."""

    def __init__(self, size: int, crop: CropSpec | None = None) -> None:
        self.size, self.crop = size, crop

    def __call__(self, split: InMemory, key: BatchKey) -> Tensor:
        images = as_tensor(split.images[list(key.indices)])
        if self.crop is None:
            return resize_whole(images, self.size, split.enlarge)
        # Rounded down, as timm does: the resized side decides which pixels the centre holds.
        resized = resize(images, int(self.size / self.crop.share), self.crop.interpolation)
        return center_crop(resized, [self.size, self.size])


def as_tensor(images: np.ndarray) -> Tensor:
    """Bytes (B, H, W, C) as a tensor (B, C, H, W) that shares them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class TestPictures:
    """Images of a folder by timm's test transform, one picture at a time."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, split: Split, key: BatchKey) -> Tensor:
        return torch.stack([self.transform(split.picture(index)) for index in key.indices])


def training_pipeline(
    split: Split, dataset: DatasetSpec, augmentation: AugmentationSpec, seed: int
) -> Pipeline:
    """How a training batch is made; erasing and mixing follow on the device."""
    augment = None
    if changes_colours(augmentation):
        augment = colour_changes(dataset, augmentation)
    return TrainingBatches(augmentation, dataset.image_size, seed, augment)


def test_pipeline(split: Split, dataset: DatasetSpec, crop: CropSpec | None = None) -> Pipeline:
    """How a test batch is made; without a crop small images stay whole, others keep 0.875 of each side."""
    if isinstance(split, InMemory):
        return TestBatches(dataset.image_size, crop)
    crop = crop or FOLDER_CROP
    # use_prefetcher: pictures stay bytes, and are normalised later on the device like all others.
    transform = transforms_imagenet_eval(
        dataset.image_size, interpolation=crop.interpolation, crop_pct=crop.share, use_prefetcher=True
    )
    return TestPictures(transform)


def changes_colours(augmentation: AugmentationSpec) -> bool:
    """Whether an image must become a Pillow picture: timm's colour changes take no other."""
    return bool(augmentation.rand_augment or augmentation.color_jitter)


def colour_changes(
    dataset: DatasetSpec, augmentation: AugmentationSpec
) -> Callable[[Image.Image], Image.Image]:
    """What timm does to a cropped and flipped picture; as in timm, RandAugment replaces colour jitter."""
    allow_posterize_to_zero_bits()
    # separate=True gives timm's three groups; the first and the last are done here, faster.
    parts: tuple[Any, ...] = transforms_imagenet_train(
        dataset.image_size,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.rand_augment,
        interpolation="random",
        mean=dataset.mean,
        use_prefetcher=True,
        separate=True,
    )
    # The second group is what stands between flip and normalisation.
    return parts[1]


def allow_posterize_to_zero_bits() -> None:
    """Let RandAugment keep 0 bits of a picture (all black, as older Pillow does): Pillow 13 refuses."""
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = posterize


def posterize(picture: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """The picture with its highest bits only; 0 bits are black, 8 and more the picture itself."""
    if bits_to_keep >= 8:
        return picture
    if bits_to_keep < 1:
        return Image.new(picture.mode, picture.size)
    return ImageOps.posterize(picture, bits_to_keep)

"""Augmentation: the same distribution and pixels as timm's, and a policy that no Pillow can crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, ToNumpy
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train

from fbt_core.data import transforms
from fbt_core.data.crops import cut, draw_crops, resize_each
from fbt_core.data.erasing import draw_rectangles, fill_by_mask, fill_each
from fbt_core.data.feed import Feed, Preparation, Raw
from fbt_core.data.order import BatchKey, Order, seed_everything
from fbt_core.data.splits import InMemory, OnDisk
from fbt_core.spec import AugmentationSpec, CropSpec, DatasetSpec
from tests.test_core.engine_runs import EVERYTHING, PLAIN, CountedOperations, make_spec

DRAWS = 4000
CROPPED = {**PLAIN, "crop_scale": (0.08, 1.0)}


def pictures(count: int = 32, channels: int = 3, enlarge: str = "bicubic") -> InMemory:
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, channels)).astype(np.uint8)
    return InMemory(images, torch.arange(count) % 10, enlarge)


def dataset(size: int = 64) -> DatasetSpec:
    return make_spec().dataset.model_copy(update={"image_size": size})


def train_keys(split: InMemory, batch: int = 16, **process: int) -> list[BatchKey]:
    return Order(len(split), batch, seed=0, **process).keys(epoch=2)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), (0.02, 0.05)])
@pytest.mark.parametrize("side", [(32, 32), (20, 48)])
def test_boxes_have_timms_distribution(scale, side):
    random.seed(0)
    picture = Image.new("RGB", side[::-1])
    draw = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([draw(picture, scale, (3 / 4, 4 / 3)) for _ in range(DRAWS)])
    ours = draw_crops(np.random.default_rng(0), DRAWS, scale).boxes(np.array(side))
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= side[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= side[1]).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, column


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_pillows_but_for_rounding(channels):
    """The same pixels within two levels, 99 of 100 exactly, and none brighter or darker on average."""
    count = 64
    split = pictures(count, channels)
    boxes = draw_crops(np.random.default_rng(0), count, (0.08, 1.0)).boxes(np.array([32, 32]))
    kinds = np.arange(count) % 2
    ours = resize_each(map(cut, transforms.as_tensor(split.images), boxes), kinds, 224).int()
    theirs = torch.stack([pillows_crop(split, i, boxes[i], kinds[i]) for i in range(count)])
    differences = ours - theirs[:, :channels]
    assert differences.abs().max() <= 2
    assert (differences != 0).float().mean() < 0.01
    assert differences.float().mean().abs() < 0.005


def pillows_crop(split: InMemory, index: int, box: np.ndarray, kind: int) -> torch.Tensor:
    """The crop as timm makes it: cut out and resized by Pillow."""
    top, left, high, wide = box.tolist()
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    crop = split.picture(index).crop((left, top, left + wide, top + high))
    return torch.from_numpy(ToNumpy()(crop.resize((224, 224), filters[kind]))).int()


def test_uncropped_grey_images_are_doubled_pixel_by_pixel():
    split = pictures(3, 1, "nearest")
    doubled = transforms.TestBatches(64)(split, BatchKey((0, 1, 2), (0, 1, 2), 3, epoch=None, step=0))
    assert np.array_equal(doubled[:, 0, ::2, ::2], split.images[..., 0])
    assert np.array_equal(doubled[:, 0, 1::2, 1::2], split.images[..., 0])


def test_test_images_are_pillows_but_for_rounding():
    split = pictures(3, 3, "bicubic")
    key = BatchKey((0, 1, 2), (0, 1, 2), 3, epoch=None, step=0)
    ours = transforms.TestBatches(48)(split, key).permute(0, 2, 3, 1).int()
    for i in range(3):
        theirs = np.asarray(split.picture(i).resize((48, 48), Image.Resampling.BICUBIC))
        assert (ours[i] - torch.from_numpy(theirs.copy()).int()).abs().max() <= 2


def timms_training(spec: DatasetSpec, augmentation: AugmentationSpec) -> Callable[[Image.Image], np.ndarray]:
    """timm's whole training transform; its posterize may be asked for 0 bits."""
    transforms.allow_posterize_to_zero_bits()
    return transforms_imagenet_train(
        spec.image_size,
        scale=augmentation.crop_scale,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.rand_augment,
        interpolation="random",
        mean=spec.mean,
        use_prefetcher=True,
    )


@pytest.mark.parametrize("policy", [None, "rand-m9-mstd0.5-inc1"])
def test_our_and_timms_pipelines_flip_and_interpolate_alike(policy):
    """Mean and spread over many draws agree: same boxes, filters, flips and policy."""
    split, spec = pictures(1), dataset()
    augmentation = AugmentationSpec(**{**CROPPED, "rand_augment": policy})
    pipeline = transforms.training_pipeline(split, spec, augmentation, seed=0)
    timms = timms_training(spec, augmentation)
    ours = pipeline(split, BatchKey((0,) * 3000, tuple(range(3000)), 3000, epoch=0, step=0)).float()
    seed_everything(0)
    theirs = torch.stack([torch.as_tensor(timms(split.picture(0))) for _ in range(3000)]).float()
    differences = ours.mean(0) - theirs.mean(0)
    assert differences.abs().max() < 10
    assert differences.abs().mean() < 2
    assert differences.mean().abs() < 2
    assert float(ours.std(0).mean()) == pytest.approx(float(theirs.std(0).mean()), rel=0.02)


@pytest.mark.parametrize(
    ("share", "interpolation", "side"),
    [(0.875, "bilinear", 256), (0.875, "bicubic", 256), (0.9, "bicubic", 248), (1.0, "bicubic", 224)],
)
def test_a_networks_test_crop_is_timms(share, interpolation, side):
    """32 x 32 images are resized to 256 or 248 and lose what lies outside the central 224."""
    split, crop = pictures(8), CropSpec(share=share, interpolation=interpolation)
    ours = transforms.test_pipeline(split, dataset(224), crop)(split, BatchKey(tuple(range(8)), (), 8))
    timms = transforms_imagenet_eval(
        224, interpolation=interpolation, crop_pct=share, crop_mode="center", use_prefetcher=True
    )
    theirs = torch.stack([torch.as_tensor(timms(split.picture(i))) for i in range(8)])
    assert timms.transforms[0].size in (side, [side, side], (side, side))
    differences = (ours.int() - theirs.int()).abs()
    assert differences.max() <= 2
    assert (differences == 0).float().mean() > 0.9
    whole = transforms.test_pipeline(split, dataset(224))(split, BatchKey(tuple(range(8)), (), 8))
    assert torch.equal(ours, whole) is (share == 1.0)


def test_a_folders_test_crop_is_timms():
    """Without a crop of the network's own, the field's value: 0.875, bicubic."""
    split = OnDisk(Path("x"), np.array([b"y"]), torch.zeros(1))
    for crop, side, kind in (
        (None, 256, "BICUBIC"),
        (CropSpec(share=0.95, interpolation="bilinear"), 235, "BILINEAR"),
    ):
        pipeline = transforms.test_pipeline(split, dataset(224), crop)
        assert pipeline.transform.transforms[0].size in (side, [side, side], (side, side))
        assert pipeline.transform.transforms[0].interpolation.name == kind


@pytest.mark.parametrize("augmentation", [PLAIN, CROPPED, EVERYTHING])
def test_batches_depend_on_seed_epoch_and_row_only(augmentation):
    split = pictures()
    pipeline = transforms.training_pipeline(split, dataset(), AugmentationSpec(**augmentation), seed=0)
    whole = [pipeline(split, key) for key in train_keys(split)]
    for key, batch in zip(train_keys(split), whole, strict=True):
        torch.manual_seed(99)  # the state of the generators beforehand does not matter
        assert torch.equal(pipeline(split, key), batch)
    for rank in range(2):
        for key, batch in zip(train_keys(split, rank=rank, world=2), whole, strict=True):
            assert torch.equal(pipeline(split, key), batch[list(key.rows)])


def test_loader_processes_give_the_same_batches():
    split = pictures()
    pipeline = transforms.training_pipeline(split, dataset(), AugmentationSpec(**EVERYTHING), seed=0)
    keys, cpu = train_keys(split), torch.device("cpu")
    alone, helped = (list(Feed(split, pipeline, workers, cpu)(keys)) for workers in (0, 2))
    for raw, other in zip(alone, helped, strict=True):
        assert torch.equal(raw.images, other.images)
        assert torch.equal(raw.labels, other.labels)
        assert torch.equal(raw.indices, other.indices)


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.8, "cutmix": 1.0}, {"erasing": 0.7}, {"mixup": 0.8, "erasing": 0.7}]
)
def test_two_processes_mix_and_erase_as_one_with_the_whole_batch(changes):
    recipe = make_spec({**PLAIN, **changes}).recipe
    prepare = Preparation(recipe, 10, (0.3,) * 3, (0.3,) * 3, torch.device("cpu"))
    split = pictures(16)
    pipeline = transforms.training_pipeline(split, dataset(32), recipe.augmentation, seed=0)

    def batch(**process):
        (key,) = train_keys(split, **process)
        seed_everything(5)
        indices = torch.tensor(key.indices)
        mixed = prepare.train(Raw(pipeline(split, key), split.labels[indices], indices), key.rows)
        return replace(mixed, images=mixed.images.clone()), list(key.rows), torch.rand(1)

    whole, _, drawn = batch()
    for rank in range(2):
        part, rows, own_drawn = batch(rank=rank, world=2)
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.target, whole.target[rows])
        assert drawn == own_drawn  # methods that draw for the whole batch draw the same afterwards


def test_erasing_is_timms():
    """As often and as large as timm's own on a batch."""
    recipe, cpu = make_spec({**PLAIN, "erasing": 0.6}).recipe, torch.device("cpu")
    prepare = Preparation(recipe, 10, (0.5,) * 3, (0.5,) * 3, cpu)
    raw = Raw(torch.full((600, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(600), torch.zeros(600))
    seed_everything(1)
    plain = prepare.images(raw)[0, 0, 0, 0].clone()
    ours = prepare.train(raw).images != plain
    theirs = RandomErasing(0.6, mode="pixel", device=cpu)(torch.full((600, 3, 32, 32), plain)) != plain
    for erased in (ours, theirs):
        share = erased.float().mean((1, 2, 3))
        assert (share > 0).float().mean() == pytest.approx(0.6, abs=0.06)
        assert share[share > 0].mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert not torch.equal(ours[0], ours[1])


def test_rectangles_have_timms_distribution():
    seed_everything(1)
    timms = (
        RandomErasing(1.0, mode="const", device=torch.device("cpu"))(torch.ones(DRAWS, 1, 40, 60))[:, 0] == 0
    )
    ours = draw_rectangles(0, range(DRAWS), (40, 60), 1.0)
    rows, columns = timms.any(2), timms.any(1)
    theirs = np.stack([rows.int().argmax(1), columns.int().argmax(1), rows.sum(1), columns.sum(1)], 1)
    assert (ours[:, :2] + ours[:, 2:] <= (40, 60)).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, column


def test_on_gpus_erasing_takes_as_many_operations_for_any_batch():
    """Shown with tensors of the CPU: the same rectangles as there, noise inside, nothing changed outside."""

    counts = []
    for batch in (4, 64):
        rectangles, images = (
            draw_rectangles(5, range(batch), (32, 48), 0.5),
            torch.full((batch, 3, 32, 48), 7.0),
        )
        with CountedOperations() as count:
            fill_by_mask(images, rectangles)
        counts.append(count.operations)
        expected = torch.full((batch, 3, 32, 48), 7.0)
        fill_each(expected, rectangles, 5, range(batch))
        assert torch.equal(images == 7, expected == 7)
        noise = images[images != 7]
        assert noise.mean().abs() < 0.1
        assert noise.std() == pytest.approx(1, abs=0.1)
    assert counts[0] == counts[1]


def test_images_are_normalised_and_get_three_channels():
    prepare = Preparation(make_spec().recipe, 10, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), torch.device("cpu"))
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    ours = prepare.images(Raw(images, torch.zeros(2), torch.zeros(2)))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    theirs = (images / 255 - mean) / std
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_keeps_its_images_when_the_next_one_is_made(channels_last):
    spec = make_spec({**PLAIN, "mixup": 0.8})
    prepare = Preparation(spec.recipe, 10, (0.1,) * 3, (0.5,) * 3, torch.device("cpu"), channels_last)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    first = prepare.images(Raw(images, torch.zeros(4), torch.zeros(4)))
    before = first.clone()
    prepare.train(Raw(255 - images, torch.arange(4), torch.arange(4)))
    assert torch.equal(first, before)
    assert first.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_table_1s_policy_survives_pillow_13_on_2000_images(monkeypatch):
    """rand-m9-mstd0.5-inc1 keeps 0 bits now and then, which Pillow 13 refuses."""
    changed, original, bits = transforms.posterize, ImageOps.posterize, []

    def pillow_13(picture, bits_to_keep):
        if not 1 <= bits_to_keep <= 8:
            raise ValueError("bits must be between 1 and 8")
        return original(picture, bits_to_keep)

    def counted(picture, bits_to_keep, **options):
        bits.append(bits_to_keep)
        return changed(picture, bits_to_keep, **options)

    monkeypatch.setattr(ImageOps, "posterize", pillow_13)
    monkeypatch.setattr(transforms, "posterize", counted)
    split = pictures(50)
    transform = transforms.colour_changes(dataset(32), AugmentationSpec(**EVERYTHING))
    random.seed(0)
    np.random.seed(0)
    for i in range(2000):
        assert transform(split.picture(i % 50)).size == (32, 32)
    assert 0 in bits, "the policy never asked for 0 bits: this test shows nothing"


def test_our_posterize_is_the_older_pillows():
    picture = pictures(1).picture(0)
    black = transforms.posterize(picture, 0)
    assert not np.asarray(black).any()
    assert black.size == picture.size
    for bits in range(1, 8):
        assert transforms.posterize(picture, bits).tobytes() == ImageOps.posterize(picture, bits).tobytes()
    assert transforms.posterize(picture, 8) is picture

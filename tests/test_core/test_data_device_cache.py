"""Images that stay on the device: the loaders' batches, but for rounding (on a CPU as on a GPU)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fbt_core.data import order, transforms
from fbt_core.data.crops import draw_crops
from fbt_core.data.device_cache import DeviceFeed, keeps_on_device, make_feed, resize_boxes
from fbt_core.data.feed import Feed
from fbt_core.data.splits import InMemory
from fbt_core.spec import AugmentationSpec, CropSpec, ExecutionSettings
from tests.test_core.engine_runs import EVERYTHING, PLAIN, CountedOperations, make_spec

CPU = torch.device("cpu")
CROPPED = {**PLAIN, "crop_scale": (0.08, 1.0)}
CACHE = ExecutionSettings(device_cache=True)


def pictures(channels: int = 3, enlarge: str = "bicubic") -> InMemory:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 32, 32, channels)).astype(np.uint8)
    return InMemory(pixels, torch.arange(64) % 10, enlarge)


def training(augmentation: dict, size: int) -> transforms.TrainingBatches:
    return transforms.TrainingBatches(AugmentationSpec(**augmentation), size, seed=0)


def check_but_for_rounding(ours: Tensor, theirs: Tensor) -> None:
    """Within two levels, 98 of 100 exactly, none brighter or darker on average."""
    differences = ours.int() - theirs.int()
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    assert differences.abs().max() <= 2
    assert (differences != 0).float().mean() < 0.02
    assert differences.float().mean().abs() < 0.005


BATCHES = [
    (pictures(), training(CROPPED, 224)),
    (pictures(1), training(CROPPED, 48)),
    (pictures(), training({**CROPPED, "crop_scale": (0.6, 1.0)}, 16)),
    (pictures(), training(PLAIN, 224)),
    (pictures(1, "nearest"), training(PLAIN, 64)),
    (pictures(1, "nearest"), training(PLAIN, 48)),
    (pictures(), transforms.TestBatches(224)),
    (pictures(), transforms.TestBatches(224, CropSpec(share=0.9, interpolation="bilinear"))),
    (pictures(1, "nearest"), transforms.TestBatches(64)),
]


def compare_with_loaders(split: InMemory, pipeline: transforms.Pipeline, device: torch.device) -> None:
    """Both feeds for the second of two processes, so that rows are not the batch's first ones."""
    keys = order.Order(len(split), 32, seed=0, rank=1, world=2).keys(epoch=2)
    if isinstance(pipeline, transforms.TestBatches):
        keys = order.test_keys(len(split), 10, rank=1, world=2)
    batches = zip(DeviceFeed(split, pipeline, device)(keys), Feed(split, pipeline, 0, CPU)(keys), strict=True)
    for ours, theirs in batches:
        assert {tensor.device.type for tensor in (ours.images, ours.labels, ours.indices)} == {device.type}
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert torch.equal(ours.indices.cpu(), theirs.indices)
        check_but_for_rounding(ours.images.cpu(), theirs.images)


@pytest.mark.parametrize(("split", "pipeline"), BATCHES)
def test_batches_are_the_loaders_but_for_rounding(split, pipeline):
    compare_with_loaders(split, pipeline, CPU)


def test_a_batch_takes_as_many_operations_as_an_image():
    """Nothing is done image by image, so a GPU is not kept waiting."""

    counts = []
    for batch in (2, 64):
        crops, images = (
            draw_crops(np.random.default_rng(0), batch, (0.08, 1.0)),
            torch.zeros(batch, 3, 32, 32),
        )
        boxes = torch.from_numpy(crops.boxes(np.array([32, 32])))
        with CountedOperations() as count:
            resize_boxes(images.to(torch.uint8), boxes, torch.from_numpy(crops.filters == 1), 64)
        counts.append(count.operations)
    assert counts[0] == counts[1]


def test_what_stays_on_the_device():
    """What was asked for, of small images, if the recipe leaves nothing to Pillow."""
    folder = {"dataset": make_spec().dataset.model_copy(update={"loader": "image_folder"}).model_dump()}
    assert keeps_on_device(make_spec(CROPPED), CACHE)
    assert not keeps_on_device(make_spec(CROPPED), ExecutionSettings())
    assert not keeps_on_device(make_spec(EVERYTHING), CACHE)
    assert not keeps_on_device(make_spec({**PLAIN, "color_jitter": 0.4}), CACHE)
    assert not keeps_on_device(make_spec(CROPPED, **folder), CACHE)
    feed = make_feed(pictures(), training(CROPPED, 32), make_spec(EVERYTHING), CACHE, CPU)
    assert isinstance(feed, Feed)

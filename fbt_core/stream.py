"""The stream of batches that the loop trains on, and the test batches.

Batches follow from the seed, the epoch and the step alone, so every run with these settings sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fbt_core.data.device_cache import make_feed
from fbt_core.data.feed import Preparation, Raw
from fbt_core.data.order import STEP, BatchKey, Order, seed_everything, test_keys, test_rounds
from fbt_core.data.splits import Split
from fbt_core.data.transforms import test_pipeline, training_pipeline
from fbt_core.distributed import Group
from fbt_core.methods.base import Batch
from fbt_core.spec import CropSpec, ExecutionSettings, RunSpec


class Stream:
    """Training and test batches of one spec, on this process's device."""

    def __init__(
        self, spec: RunSpec, settings: ExecutionSettings, splits: tuple[Split, Split], group: Group
    ) -> None:
        self.spec, self.settings, self.group = spec, settings, group
        recipe, dataset, student = spec.recipe, spec.dataset, spec.student
        training = training_pipeline(splits[0], dataset, recipe.augmentation, spec.seed)
        # Made once: its loader processes live as long as the run.
        self.train_feed = make_feed(splits[0], training, spec, settings, group.device)
        self.order = Order(dataset.train_images, recipe.batch_size, spec.seed, group.rank, group.world)
        self.preparation = Preparation(
            recipe, dataset.classes, student.mean, student.std, group.device, settings.channels_last
        )
        self.tests = TestImages(spec, settings, splits[1], group, self.preparation, spec.test_crop)

    def training(self, epoch: int, first_step: int) -> Iterator[tuple[BatchKey, Raw]]:
        """This process's part of an epoch's batches, from a step on."""
        keys = self.order.keys(epoch, first_step)
        return zip(keys, self.train_feed(keys), strict=True)

    def parts(self, key: BatchKey, raw: Raw) -> Sequence[Batch]:
        """A batch ready to learn from, in the equal parts of gradient accumulation.

        Every random draw from here to the update, the method's own too, follows from seed, epoch and step.
        """
        # Seeded at each step: a resumed run draws what an uninterrupted one would.
        seed_everything(self.spec.seed, STEP, key.epoch, key.step, process=self.group.rank)
        return parts_of(self.preparation.train(raw, key.rows), self.settings.gradient_accumulation)


class TestImages:
    """This process's share of the test images in one view: a crop, and the normalisation of `preparation`."""

    __test__ = False
    """Not a test, whatever pytest takes its name for."""

    def __init__(
        self,
        spec: RunSpec,
        settings: ExecutionSettings,
        split: Split,
        group: Group,
        preparation: Preparation,
        crop: CropSpec | None,
    ) -> None:
        self.images, self.group, self.preparation = spec.dataset.test_images, group, preparation
        # No gradients are kept in a test, so the training's batch fits in any case.
        self.batch = max(1, spec.recipe.batch_size // group.world)
        pipeline = test_pipeline(split, spec.dataset, crop)
        self.feed = make_feed(split, pipeline, spec, settings, group.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, H, W) and labels (B,)."""
        for raw in self.feed(test_keys(self.images, self.batch, self.group.rank, self.group.world)):
            yield self.preparation.images(raw), raw.labels.to(self.group.device)

    @property
    def rounds(self) -> int:
        """How many batches the largest share of the test images makes."""
        return test_rounds(self.images, self.batch, self.group.world)


def parts_of(batch: Batch, parts: int) -> list[Batch]:
    """The batch in equal parts for gradient accumulation."""
    if parts == 1:
        return [batch]
    pieces = zip(
        batch.images.chunk(parts), batch.target.chunk(parts), batch.indices.chunk(parts), strict=True
    )
    return [Batch(images, target, indices) for images, target, indices in pieces]

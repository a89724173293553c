"""A DataLoader of the caller's own as the stream of batches that the training loop asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from fbt_core.data.order import ORDER, STEP, BatchKey, Order, seed_everything
from fbt_core.distributed import Group
from fbt_core.errors import UserError
from fbt_core.methods.base import Batch, Method
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_core.stream import parts_of


@dataclass(frozen=True)
class Seen:
    """What two loaders show of their data. `numbers`: how many image numbers (B,) a batch may hold."""

    classes: int
    size: int
    batch: int
    train_images: int
    test_images: int
    numbers: int


class Given(NamedTuple):
    """A batch: images float (B, 3, S, S), labels (B,) or (B, classes), the images' numbers (B,) or None."""

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None


def look_at(train: DataLoader[Any], test: DataLoader[Any], classes: int | None) -> Seen:
    """Counts and shapes, from the loaders and one test batch; a UserError says what a loader lacks."""
    # Everything is asked of the loaders before training: a fault after an epoch would cost that epoch.
    for name, loader in (("train", train), ("test", test)):
        if not hasattr(loader, "__len__") or not hasattr(getattr(loader, "dataset", None), "__len__"):
            hint = "give a DataLoader over a dataset that knows its length"
            raise UserError(
                "does not say how many batches and images it has", where=f"{name} loader", hint=hint
            )
    # Predictions of two runs are compared image by image, so the order has to be the same each time.
    if isinstance(getattr(test, "sampler", None), RandomSampler):
        hint = "use shuffle=False; predictions are kept by the image's position"
        raise UserError("shuffles the test images", where="test loader", hint=hint)
    if not train.batch_size:
        raise UserError("has no batch_size", where="train loader", hint="the recipe needs one for all steps")
    # One real batch: neither a dataset nor a loader says what shape its images have.
    images = given(next(iter(test)), "test loader").images
    classes = classes or len(getattr(train.dataset, "classes", ()))
    if not classes:
        raise UserError("the train loader's dataset lists none", where="classes", hint="state classes=...")
    steps = len(train)
    # The stated length counts a last batch that is not whole unless it is dropped; here it always is.
    if not getattr(train, "drop_last", True):
        steps = len(train.sampler) // train.batch_size
    if not steps:
        raise UserError(f"has no whole batch of {train.batch_size}", where="train loader")
    return Seen(
        classes=classes,
        size=images.shape[-1],
        batch=train.batch_size,
        # What an epoch trains on, not what the dataset holds: the rest is dropped in each epoch.
        train_images=steps * train.batch_size,
        test_images=len(test.dataset),  # type: ignore[arg-type]
        numbers=len(train.dataset),  # type: ignore[arg-type]
    )


def given(batch: Any, where: str) -> Given:
    """A loader's batch, checked: (images, labels) or (images, labels, numbers of the images)."""
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise UserError("must give (images, labels) or (images, labels, numbers)", where=where)
    # Checked for each batch: a transform of the user's own may give another shape only now and then.
    images = batch[0]
    shape = tuple(getattr(images, "shape", ()))
    if not isinstance(images, Tensor) or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(f"images have shape {shape}, not (B, 3, S, S)", where=where)
    if not images.is_floating_point():
        hint = "e.g. torchvision's ToTensor and Normalize"
        raise UserError(f"images are {images.dtype}, not floats", where=where, hint=hint)
    return Given(*batch)


class LoaderStream:
    """What fbt_core.stream.Stream is to a run's own data set: training and test batches on the device."""

    def __init__(
        self,
        spec: RunSpec,
        settings: ExecutionSettings,
        train: DataLoader[Any],
        test: DataLoader[Any],
        group: Group,
    ) -> None:
        # A loader of the caller's does not know its share of the images: each process would see all of them.
        if group.world > 1:
            hint = "`snakemake` trains on several GPUs, from a data set of config/datasets.yaml"
            raise UserError("a loader of your own takes one process", where="distil", hint=hint)
        self.spec, self.settings, self.group = spec, settings, group
        self.train_loader, self.test_loader = train, test
        self.order = Order(spec.dataset.train_images, spec.recipe.batch_size, spec.seed)
        self._labels: list[Tensor] = []

    def check(self, method: Method) -> None:
        """Refuse a method that needs the number of each image if the loader does not give it."""
        # Only a method that remembers images needs numbers; asking all callers for them would be a burden.
        if not method.needs_indices:
            return
        first = given(next(iter(self.train_loader)), "train loader")
        if first.indices is None:
            hint = "let the dataset give (image, label, number)"
            what = f"method '{method.name}' remembers each image and needs its number"
            raise UserError(what, where="train loader", hint=hint)

    def training(self, epoch: int, first_step: int) -> Iterator[tuple[BatchKey, Given]]:
        """An epoch's batches. A loader that draws from torch's generator draws the same in every attempt."""
        # Batches in the middle of an epoch cannot be skipped without making them.
        assert first_step == 0, "a foreign loader starts at epochs' starts only"
        # The caller's shuffling and transforms draw from torch's generator: each attempt draws the same.
        seed_everything(self.spec.seed, ORDER, epoch)
        size, step = self.spec.recipe.batch_size, 0
        for item in self.train_loader:
            batch = given(item, "train loader")
            if len(batch.images) != size:  # the last one, which is dropped here too
                continue
            yield BatchKey((), (), size, epoch, step), batch
            step += 1
            if step == self.order.steps:
                return
        what = f"gave {step} whole batches, not the {self.order.steps} that it states"
        raise UserError(what, where="train loader")

    def parts(self, key: BatchKey, raw: Given) -> Sequence[Batch]:
        """A batch on the device, in the equal parts of gradient accumulation; draws as in Stream.parts."""
        assert key.epoch is not None and key.step is not None
        # Seeded again after the caller's transforms, however much they have drawn.
        seed_everything(self.spec.seed, STEP, key.epoch, key.step)
        indices = raw.indices
        # -1 is no image's number: a method that would use it was refused by `check`.
        if indices is None:
            indices = torch.full((len(raw.images),), -1)
        batch = Batch(self._images(raw.images), self._to(raw.labels), self._to(indices))
        return parts_of(batch, self.settings.gradient_accumulation)

    @property
    def tests(self) -> LoaderTests:
        """The test batches, as often as they are asked for."""
        return LoaderTests(self)

    def test_labels(self) -> Tensor:
        """The labels of all test images, in the loader's order."""
        return torch.cat([given(item, "test loader").labels for item in self.test_loader]).cpu()

    def _images(self, images: Tensor) -> Tensor:
        layout = torch.contiguous_format
        if self.settings.channels_last:
            layout = torch.channels_last
        return self._to(images).to(torch.float32).contiguous(memory_format=layout)

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.group.device, non_blocking=True)


class LoaderTests:
    """What fbt_core.stream.TestImages is to a run's own data set: images (B, 3, S, S) and labels (B,)."""

    def __init__(self, stream: LoaderStream) -> None:
        self.stream, self.rounds = stream, len(stream.test_loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in self.stream.test_loader:
            batch = given(item, "test loader")
            yield self.stream._images(batch.images), self.stream._to(batch.labels)

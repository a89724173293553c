"""Batches to the training loop, from this process or loader processes, and what the device adds to them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fbt_core.data.erasing import Erasing
from fbt_core.data.order import BatchKey
from fbt_core.data.splits import Split
from fbt_core.data.transforms import Pipeline
from fbt_core.errors import UserError
from fbt_core.methods.base import Batch
from fbt_core.spec import RecipeSpec

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Raw:
    """A batch before the device: images uint8 (B, 1 or 3, H, W), labels and image numbers (B,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def pin_memory(self) -> Raw:
        return Raw(self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory())


@dataclass(frozen=True)
class Fault:
    """A user's error met in a loader process, carried to the main one as it is."""

    message: str


class Batches(Dataset):
    """Makes whole batches from their keys; a Fault instead of one that cannot be made."""

    def __init__(self, split: Split, pipeline: Pipeline) -> None:
        self.split, self.pipeline = split, pipeline

    def __getitem__(self, key: BatchKey) -> Raw | Fault:
        # Raised in a loader process, a user's error would come wrapped in torch's own traceback.
        try:
            indices = torch.tensor(key.indices, dtype=torch.int64)
            return Raw(self.pipeline(self.split, key), self.split.labels[indices], indices)
        except UserError as error:
            return Fault(str(error))


class Feed:
    """A stream of batches for given keys; loader processes are started once and kept."""

    def __init__(self, split: Split, pipeline: Pipeline, workers: int, device: torch.device) -> None:
        # The keys are an object that is filled anew, so one loader and its processes serve all epochs.
        self.batches, self.workers, self.keys = Batches(split, pipeline), workers, _Keys()
        self.loader = self._loader(device) if workers else None

    def __call__(self, keys: Sequence[BatchKey]) -> Iterator[Raw]:
        """The keys' batches in order; a UserError for a file that is gone or a loader process that died."""
        for item in self._items(keys):
            if isinstance(item, Fault):
                raise UserError(item.message)
            yield item

    def _items(self, keys: Sequence[BatchKey]) -> Iterator[Raw | Fault]:
        if self.loader is None:
            yield from map(self.batches.__getitem__, keys)
            return
        self.keys.values = list(keys)
        try:
            # A loader process that was killed shows as a broken pipe or a missing shared-memory file.
            yield from self.loader
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            raise _loader_died(f"its connection broke: {error}") from None

    def _loader(self, device: torch.device) -> DataLoader:
        return DataLoader(
            self.batches,
            # Whole batches are made by one process (batch_size None): crops are drawn for a batch at once.
            batch_size=None,
            sampler=self.keys,
            num_workers=self.workers,
            persistent_workers=True,
            # Pinned memory lets a GPU copy a batch while it still computes on the one before.
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            # A generator of its own: else each epoch would draw a seed from torch's.
            generator=torch.Generator(),
        )


class _Keys:
    """The sampler of a loader that lives longer than one epoch: its keys are set before each pass."""

    def __init__(self) -> None:
        self.values: list[BatchKey] = []

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


def _start_worker(number: int) -> None:
    """Leave the signals that save a run to the main process, and its cores to the other loaders."""
    # The main process saves at these signals; a loader that died first would look like a crash.
    for name in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    # Loaders run side by side already: threads in each would only fight for the same cores.
    torch.set_num_threads(1)


@contextmanager
def explaining_loaders() -> Iterator[None]:
    """Report a dead loader process in one line; torch raises it wherever the main process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _loader_died(str(error).split(".")[0]) from None


def _loader_died(reason: str) -> UserError:
    hint = "run the same command again to continue; fewer workers need less memory"
    return UserError(f"a loader process died ({reason})", where="workers", hint=hint)


class Preparation:
    """What happens to a batch on the device: normalisation, mixing, then erasing (timm's order)."""

    def __init__(
        self,
        recipe: RecipeSpec,
        classes: int,
        mean: Triple,
        std: Triple,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        augmentation = recipe.augmentation
        self.device = device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        # Bytes are normalised as they come, so mean and deviation are scaled to 0..255 once, here.
        self.mean = torch.tensor(mean, device=device).mul(255).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).mul(255).view(1, 3, 1, 1)
        self.erase = Erasing(augmentation.erasing) if augmentation.erasing else None
        self.mix = _mixing(recipe, classes)

    def train(self, raw: Raw, rows: Sequence[int] | None = None) -> Batch:
        """A training batch; mixed targets are probabilities (B, classes), smoothed already.

        `rows`: where its images stand in the whole batch of all processes.
        """
        # timm's order; erasing before mixing would spread one image's noise over two.
        images, target = self.images(raw), raw.labels.to(self.device, non_blocking=True)
        if self.mix:
            images, target = self.mix(images, target)
        if self.erase:
            self.erase(images, rows or range(len(images)))
        return Batch(images, target, raw.indices.to(self.device, non_blocking=True))

    def images(self, raw: Raw) -> Tensor:
        """Images normalised for the student, (B, 3, H, W), from one or three channels."""
        # Grey images cross the bus as one channel and are repeated there, without a copy.
        images = raw.images.to(self.device, non_blocking=True).expand(-1, 3, -1, -1)
        # Computed in place on one new tensor: else each operation would make another batch of floats.
        normalised = torch.empty(images.shape, device=self.device, memory_format=self.format)
        return normalised.copy_(images).sub_(self.mean).div_(self.std)


def _mixing(recipe: RecipeSpec, classes: int) -> Mixup | None:
    augmentation = recipe.augmentation
    # Without mixing labels stay whole numbers, which the loss smooths itself.
    if not augmentation.mixup and not augmentation.cutmix:
        return None
    return Mixup(
        mixup_alpha=augmentation.mixup or 0.0,
        cutmix_alpha=augmentation.cutmix or 0.0,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )

"""Which images make which batch, and the seed of every random draw: functions of seed, epoch and index only.

So neither a restart, nor the number of loader processes, nor the number of GPUs changes what a run sees.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch

from fbt_core.collectives import rows_of
from fbt_core.errors import UserError

ORDER, AUGMENT, STEP = 1, 2, 3  # separate streams of random numbers


@dataclass(frozen=True)
class BatchKey:
    """One batch of one process: the images' numbers and where they stand in the whole batch of all processes.

    `epoch` and `step` seed its augmentation; they are None when a network is evaluated.
    """

    indices: tuple[int, ...]
    rows: tuple[int, ...]
    whole: int
    epoch: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Order:
    """How a run walks through its training images: `batch` is the total over all processes."""

    images: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch > self.images:
            what = f"batch_size {self.batch} is larger than the training set ({self.images} images)"
            raise UserError(what, where="recipe.batch_size")

    @property
    def steps(self) -> int:
        """Steps of an epoch; a last batch that is not whole is dropped."""
        return self.images // self.batch

    def keys(self, epoch: int, first_step: int = 0) -> list[BatchKey]:
        """This process's batches of an epoch from a step on."""
        # A permutation of the epoch's own generator: a resumed run needs no state to know its batches.
        order = generator(self.seed, ORDER, epoch).permutation(self.images)
        rows = rows_of(self.rank, self.world, self.batch)
        return [self._key(order, rows, epoch, step) for step in range(first_step, self.steps)]

    def _key(self, order: np.ndarray, rows: tuple[int, ...], epoch: int, step: int) -> BatchKey:
        # The whole batch is cut out first, then a process takes its rows: all agree on what the batch is.
        whole = order[step * self.batch : (step + 1) * self.batch]
        return BatchKey(tuple(whole[list(rows)].tolist()), rows, self.batch, epoch, step)


def test_keys(images: int, batch: int, rank: int = 0, world: int = 1) -> list[BatchKey]:
    """This process's share of a test split: every image exactly once over all processes, nothing padded."""
    # Every world-th image, so shares differ by one at most; `interleave` puts the classes back in order.
    mine = range(rank, images, world)
    parts = [tuple(mine[start : start + batch]) for start in range(0, len(mine), batch)]
    # No epoch and no step: nothing is drawn when a network is tested.
    return [BatchKey(part, tuple(range(len(part))), len(part)) for part in parts]


def test_rounds(images: int, batch: int, world: int = 1) -> int:
    """How many batches the largest share of a test split makes."""
    return math.ceil(math.ceil(images / world) / batch)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers that depend on the run's seed and the stream's numbers only."""
    return np.random.default_rng([seed, *stream])


def seed_everything(seed: int, *stream: int, process: int = 0) -> None:
    """Set Python's, numpy's and torch's generators; on GPUs each process draws its own numbers."""
    # Three numbers from one seed: the same seed in all generators would make their draws related.
    first, second, third = np.random.SeedSequence([seed, *stream]).generate_state(3, np.uint32).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)  # torch.manual_seed takes a hundred times longer
    # GPUs draw their own numbers per process (dropout), and only then: asking sooner would start CUDA.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(third + process)

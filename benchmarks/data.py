"""How many training images a second one core makes, ours against timm's own loader, in one interleaved run.

    OMP_NUM_THREADS=1 python benchmarks/data.py [--images 1024] [--rounds 5]

From 32x32 colour images to 224x224 batches: Table 1's CNN pipeline (crop, flip) and its MSA/MLP pipeline
(crop, flip, RandAugment; mixing and erasing happen on the device and are left out on both sides), and the
smoke scale's (28x28 grey images, flip, 64x64). Time is CPU time of this process, loaders in this process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from fbt_core.data import mnist
from fbt_core.data.order import Order
from fbt_core.data.splits import InMemory
from fbt_core.data.transforms import training_pipeline
from fbt_core.spec import AugmentationSpec, DatasetSpec

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
POLICY = "rand-m9-mstd0.5-inc1"
BATCH = 128


class Pictures(Dataset):
    """The same images as torchvision's CIFAR100 gives them to timm."""

    def __init__(self, split: InMemory) -> None:
        self.split, self.transform = split, None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int):
        picture = Image.fromarray(np.broadcast_to(self.split.images[index], (32, 32, 3)))
        return self.transform(picture), int(self.split.labels[index])


def augmentation(policy: str | None, crop: bool) -> AugmentationSpec:
    scale = (0.08, 1.0) if crop else None
    options = {"color_jitter": None, "mixup": None, "cutmix": None, "erasing": None}
    return AugmentationSpec(crop_scale=scale, flip=0.5, rand_augment=policy, **options)


def ours(split: InMemory, policy: str | None, size: int, crop: bool = True) -> Callable[[], None]:
    names = {"name": "bench", "loader": "cifar100", "variant": "full", "classes": 100}
    counts = {"train_images": len(split), "test_images": 1, "image_size": size}
    data = DatasetSpec(**names, **counts, mean=MEAN, std=STD)
    pipeline = training_pipeline(split, data, augmentation(policy, crop), seed=0)
    keys = Order(len(split), min(BATCH, len(split)), seed=0).keys(0)
    mean, std = (
        torch.tensor(values).mul(255).view(1, 3, 1, 1)[:, : split.images.shape[3]] for values in (MEAN, STD)
    )

    def epoch() -> None:
        for key in keys:
            images = pipeline(split, key).to(torch.float32, memory_format=torch.contiguous_format)
            images.sub_(mean).div_(std)

    return epoch


def timms(split: InMemory, policy: str | None, size: int) -> Callable[[], None]:
    loader = create_loader(
        Pictures(split),
        input_size=(3, size, size),
        batch_size=min(BATCH, len(split)),
        is_training=True,
        use_prefetcher=False,
        auto_augment=policy,
        color_jitter=0.4 if policy else 0.0,
        interpolation="random",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
    )

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def rate(epoch: Callable[[], None], images: int) -> float:
    """Images per second of CPU time."""
    start = time.process_time()
    epoch()
    return images / (time.process_time() - start)


def compare(title: str, images: int, rounds: int, *ways: Callable[[], None]) -> None:
    """One line: the median rate of each way over interleaved rounds, and of their ratio."""
    rates = [[rate(way, images) for way in ways] for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*rates, strict=True)]
    text = f"{title:<38} ours {medians[0]:8.0f} images/s"
    if len(ways) > 1:
        ratio = statistics.median(row[0] / row[1] for row in rates)
        text += f"   timm {medians[1]:8.0f} images/s   ratio {ratio:.2f}"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3)).astype(np.uint8)
    split = InMemory(pixels, torch.zeros(chosen.images, dtype=torch.int64), "bicubic")
    for title, policy in (("CNN: crop, flip (224 px)", None), ("MSA/MLP: crop, flip, RandAugment", POLICY)):
        compare(title, chosen.images, chosen.rounds, ours(split, policy, 224), timms(split, policy, 224))
    grey = mnist.load_split(None, "train", 10, 5000)
    compare("smoke: flip (64 px, grey)", 5000, chosen.rounds, ours(grey, None, 64, crop=False))


if __name__ == "__main__":
    main()

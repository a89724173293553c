"""A complete check of a dataset's folder: every file, every count, every image decoded."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from timm.data import ImageNetInfo
from tqdm import tqdm

from fbt_core.data import cifar, image_folder
from fbt_core.data.load import LOADERS
from fbt_core.data.splits import open_picture
from fbt_core.errors import UserError
from fbt_core.spec import DatasetSpec

SHOWN = 10
CHUNK = 64
WORDNET_ID = re.compile(r"n\d{8}")
IMAGES_PER_CLASS = {"train": (732, 1300), "test": (50, 50)}
"""The fewest and the most in a class of ImageNet-1K."""


@dataclass(frozen=True)
class Finding:
    """One result of a check: what was found, and where."""

    level: Literal["good", "warning", "error"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


def check_data(
    name: str, spec: DatasetSpec, root: Path | None, processes: int | None = None
) -> list[Finding]:
    """Everything right or wrong with a dataset's root; no error among the findings means it can be used.

    `root` None checks the embedded subset. Images are decoded in parallel, with a progress bar on a terminal.
    """
    if root is not None and not root.is_dir():
        return [Finding("error", f"data_roots.{name}", f"folder {root} does not exist")]
    if spec.loader == "image_folder":
        return [*_check_classes(root, spec), *_check_images(root, spec, processes or _cores())]
    findings = [_check_split(spec, root, split) for split in ("train", "test")]
    return findings + (list(_compare_with_official(root, spec)) if spec.loader == "cifar100" else [])


def _check_split(spec: DatasetSpec, root: Path | None, split: str) -> Finding:
    """Read a split kept in a few files: the loader checks counts, shapes and labels."""
    count = spec.train_images if split == "train" else spec.test_images
    try:
        LOADERS[spec.loader](root, split, spec.classes, count)
    except UserError as error:
        return Finding("error", error.where or split, error.what)
    return Finding("good", str(root or "embedded"), f"{split}: {count:,} images, {spec.classes} classes")


def _compare_with_official(root: Path, spec: DatasetSpec) -> Iterator[Finding]:
    """Warn of files whose content is not the official one; one that was only packed anew is fine."""
    for split, count in (("train", spec.train_images), ("test", spec.test_images)):
        path = cifar.data_file(root, split)
        try:
            if cifar.is_official(path, split):
                continue
            if not cifar.has_official_content(*cifar.read_file(path, spec.classes, count), split):
                what = "other content than the official archive's: md5, sums of pixels or classes differ"
                yield Finding("warning", str(path), what)
        except (UserError, OSError):
            continue  # told already


def _check_classes(root: Path, spec: DatasetSpec) -> Iterator[Finding]:
    """Class folders of both splits: their number, their names, empty ones."""
    known = _known_classes(spec, root)
    for split in ("train", "test"):
        try:
            folder = image_folder.split_folder(root, split)
        except UserError as error:
            yield Finding("error", error.where or split, error.what)
            continue
        names = image_folder.class_names(folder)
        if len(names) != spec.classes:
            yield Finding("error", str(folder), f"{len(names):,} class folders, expected {spec.classes:,}")
        yield from _list_faults(folder, sorted(known - set(names)), "class folders are missing")
        yield from _list_faults(folder, sorted(set(names) - known) if known else [], "unknown class folders")
        empty = [name for name in names if not image_folder.images_of(folder / name)]
        yield from _list_faults(folder, empty, "class folders hold no image")


def _known_classes(spec: DatasetSpec, root: Path) -> set[str]:
    """The class names there should be: ImageNet-1K's own, else those of the training split."""
    try:
        names = set(image_folder.class_names(image_folder.split_folder(root, "train")))
    except UserError:
        return set()
    if spec.classes == 1000 and any(WORDNET_ID.fullmatch(name) for name in names):
        return set(ImageNetInfo().label_names())
    return names


def _check_images(root: Path, spec: DatasetSpec, processes: int) -> Iterator[Finding]:
    """Count and decode every image of both splits."""
    for split, expected in (("train", spec.train_images), ("test", spec.test_images)):
        try:
            folder = image_folder.split_folder(root, split)
        except UserError:
            continue  # told by the check of the classes
        names = image_folder.class_names(folder)
        paths = [folder / name / file for name in names for file in image_folder.images_of(folder / name)]
        faults = _undecodable(paths, processes, split)
        yield from _list_faults(folder, faults, "images cannot be decoded")
        odd = list(_check_counts(folder, split, Counter(path.parent.name for path in paths), expected))
        if len(paths) != expected:
            yield Finding("error", str(folder), f"{len(paths):,} images, expected {expected:,}")
        elif not faults and not odd:
            yield Finding("good", str(folder), f"{split}: {expected:,} images, every one decoded")
        yield from odd


def _check_counts(folder: Path, split: str, counts: Counter[str], expected: int) -> Iterator[Finding]:
    """Name the classes that images are missing from, or that have too many, as far as it can be known."""
    if _is_imagenet(counts):
        low, high = IMAGES_PER_CLASS[split]
        asked = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        odd = _fewest_first(counts, lambda count: not low <= count <= high)
        if odd:
            yield from _list_faults(folder, odd, f"class folders hold another number of images than {asked}")
            return
    missing, usual = expected - counts.total(), _usual(counts)
    if missing and usual:
        unlike = _fewest_first(counts, lambda count: count < usual if missing > 0 else count > usual)
        less, wrong = ("fewer", "missing") if missing > 0 else ("more", "too many")
        what = f"class folders hold {less} images than most ({usual:,}), so look there for what is {wrong}"
        yield from _list_faults(folder, unlike, what)


def _usual(counts: Counter[str]) -> int | None:
    """The number of images that more than half of the classes hold."""
    ((usual, classes),) = Counter(counts.values()).most_common(1) or [(None, 0)]
    return usual if 2 * classes > len(counts) else None


def _fewest_first(counts: Counter[str], chosen: Callable[[int], bool]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda entry: (entry[1], entry[0]))
    return [f"{name} ({count:,})" for name, count in ordered if chosen(count)]


def _is_imagenet(names: Collection[str]) -> bool:
    return len(names) > 900 and all(WORDNET_ID.fullmatch(name) for name in names)


def _undecodable(paths: list[Path], processes: int, title: str) -> list[str]:
    """What is wrong with each image that cannot be decoded completely."""
    bar = partial(tqdm, total=len(paths), desc=title, unit="img", disable=None)
    if processes == 1:
        return [fault for fault in bar(map(_fault, paths)) if fault]
    with ProcessPoolExecutor(processes) as pool:
        return [fault for fault in bar(pool.map(_fault, paths, chunksize=CHUNK)) if fault]


def _fault(path: Path) -> str | None:
    try:
        open_picture(path)
    except UserError as error:
        return f"{path.parent.name}/{path.name} ({error.what})"
    return None


def _list_faults(folder: Path, names: list[str], what: str) -> Iterator[Finding]:
    """One finding that counts the names and lists the first few."""
    if names:
        more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        yield Finding("error", str(folder), f"{len(names):,} {what}: {', '.join(names[:SHOWN])}{more}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))

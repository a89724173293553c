"""A complete check of a dataset's folder: every file, every count, every image decoded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from timm.data import ImageNetInfo
from tqdm import tqdm

from fbt_core.data import cifar
from fbt_core.data.image_folder import Tree, counted, read_tree
from fbt_core.data.load import LOADERS
from fbt_core.data.pictures import Variety, look_at, open_picture
from fbt_core.data.splits import blank_images
from fbt_core.errors import UserError
from fbt_core.provenance import usable_cores
from fbt_core.spec import DatasetSpec

CHUNK = 64
WORDNET_ID = re.compile(r"n\d{8}")
IMAGES_PER_CLASS = {"train": (732, 1300), "test": (50, 50)}
"""The fewest and the most in a class of ImageNet-1K."""
IMAGENET_IMAGES = {"train": 1_281_167, "test": 50_000}


@dataclass(frozen=True)
class CheckResult:
    """One result of a check: what was found, and where."""

    level: Literal["good", "warning", "error"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


def check_data(
    name: str, spec: DatasetSpec, root: Path | None, processes: int | None = None
) -> list[CheckResult]:
    """Everything right or wrong with a dataset's root; no error among the results means it can be used.

    `root` None checks the embedded subset. Images are decoded in parallel, with a progress bar on a terminal.
    """
    # A missing folder is one result: each check below would repeat it.
    if root is not None and not root.is_dir():
        return [CheckResult("error", f"data_roots.{name}", f"folder {root} does not exist")]
    if spec.loader == "image_folder":
        return list(_check_folders(root, spec, processes or usable_cores()))
    results = [result for split in ("train", "test") for result in _check_split(spec, root, split)]
    if spec.loader == "cifar100":
        results += _compare_with_official(root, spec)
    return results


def _check_split(spec: DatasetSpec, root: Path | None, split: str) -> Iterator[CheckResult]:
    """Read a split kept in a few files: the loader checks counts, shapes and labels."""
    # The training's own loader: what passes here is what a run will read.
    count, where = _images(spec, split), str(root or "embedded")
    try:
        images = LOADERS[spec.loader](root, split, spec.classes, count)
    except UserError as error:
        yield CheckResult("error", error.where or split, error.what)
        return
    yield CheckResult("good", where, f"{split}: {count:,} images, {spec.classes} classes")
    if problem := blank_images(images, count):
        yield CheckResult("warning", where, f"{split}: {problem}")


def _images(spec: DatasetSpec, split: str) -> int:
    return spec.train_images if split == "train" else spec.test_images


def _compare_with_official(root: Path, spec: DatasetSpec) -> Iterator[CheckResult]:
    """Warn of files whose content is not the official one; one that was only packed anew is fine."""
    for split, count in (("train", spec.train_images), ("test", spec.test_images)):
        path = cifar.data_file(root, split)
        try:
            # Byte for byte is the quick answer; only another file's content is looked at.
            if cifar.is_official(path, split):
                continue
            images, labels = cifar.read_file(path, spec.classes, count)
            if not cifar.has_official_content(images, labels, split):
                what = "other content than the official archive's: md5, sums of pixels or classes differ"
                yield CheckResult("warning", str(path), what)
        except (UserError, OSError):
            continue  # the check of the split has reported it


def _check_folders(root: Path, spec: DatasetSpec, processes: int) -> Iterator[CheckResult]:
    """Class folders of both splits, then every one of their images."""
    trees = {}
    for split in ("train", "test"):
        try:
            trees[split] = read_tree(root, split)
        except UserError as error:
            yield CheckResult("error", error.where or split, error.what)
    # ImageNet's own names if they are meant: a folder may hold 1,000 classes and the wrong ones.
    known = _known_classes(spec, trees["train"]) if "train" in trees else set()
    for tree in trees.values():
        for fault in tree.class_faults(spec.classes, known):
            yield CheckResult("error", str(tree.folder), fault)
        if skipped := tree.skipped_files():
            yield CheckResult("warning", str(tree.folder), skipped)
    # The counts and names of both splits come first, because decoding a million images takes long.
    for split, tree in trees.items():
        yield from _check_images(tree, split, _images(spec, split), processes)


def _known_classes(spec: DatasetSpec, training: Tree) -> set[str]:
    """The class names there should be: ImageNet-1K's own, else those of the training split.

    1,000 WordNet folders with another number of images than ImageNet-1K's are somebody's own choice.
    """
    names = set(training.images)
    wordnet = [name for name in names if WORDNET_ID.fullmatch(name)]
    own_choice = len(wordnet) == len(names) == 1000 and spec.train_images != IMAGENET_IMAGES["train"]
    if spec.classes == 1000 and wordnet and not own_choice:
        return set(ImageNetInfo().label_names())
    return names


def _check_images(tree: Tree, split: str, expected: int, processes: int) -> Iterator[CheckResult]:
    """Count and decode every image of a split."""
    where, paths = str(tree.folder), [tree.folder / path for path in tree.paths()]
    faults, variety = _decode(paths, processes, split)
    for fault in counted(faults, "images cannot be decoded"):
        yield CheckResult("error", where, fault)
    counts = Counter({name: len(files) for name, files in tree.images.items()})
    # Sought before the verdict: a total that fits may hide one class with more and one with fewer.
    odd = list(_check_counts(tree.folder, split, counts, expected))
    if len(paths) != expected:
        yield CheckResult("error", where, f"{len(paths):,} images, expected {expected:,}")
    elif not faults and not odd:
        yield CheckResult("good", where, f"{split}: {expected:,} images, every one decoded")
    yield from odd
    if problem := variety.problem():
        yield CheckResult("warning", where, f"{split}: {problem}")


def _check_counts(folder: Path, split: str, counts: Counter[str], expected: int) -> Iterator[CheckResult]:
    """Name the classes that images are missing from, or that have too many, as far as it can be known."""
    if expected == IMAGENET_IMAGES[split] and all(WORDNET_ID.fullmatch(name) for name in counts):
        low, high = IMAGES_PER_CLASS[split]
        asked = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        odd = _fewest_first(counts, lambda count: not low <= count <= high)
        if odd:
            what = f"class folders hold another number of images than {asked}"
            yield from (CheckResult("error", str(folder), fault) for fault in counted(odd, what))
            return
    # No class is usual if no number is most classes' own: then nobody can say which one is odd.
    missing, usual = expected - counts.total(), _usual(counts)
    if missing and usual:
        unlike = _fewest_first(counts, lambda count: count < usual if missing > 0 else count > usual)
        less, wrong = ("fewer", "missing") if missing > 0 else ("more", "too many")
        what = f"class folders hold {less} images than most ({usual:,}), so look there for what is {wrong}"
        yield from (CheckResult("error", str(folder), fault) for fault in counted(unlike, what))


def _usual(counts: Counter[str]) -> int | None:
    """The number of images that more than half of the classes hold."""
    ((usual, classes),) = Counter(counts.values()).most_common(1) or [(None, 0)]
    return usual if 2 * classes > len(counts) else None


def _fewest_first(counts: Counter[str], chosen: Callable[[int], bool]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda entry: (entry[1], entry[0]))
    return [f"{name} ({count:,})" for name, count in ordered if chosen(count)]


def _decode(paths: list[Path], processes: int, title: str) -> tuple[list[str], Variety]:
    """What is wrong with each image that cannot be decoded completely, and how much the others differ."""
    bar = partial(tqdm, total=len(paths), desc=title, unit="img", disable=None)
    with ProcessPoolExecutor(processes) if processes > 1 else nullcontext() as pool:
        looks = map(_look, paths)
        # Chunks: a message per image would cost more than decoding a small one.
        if pool is not None:
            looks = pool.map(_look, paths, chunksize=CHUNK)
        faults, variety = [], Variety()
        for look in bar(looks):
            if isinstance(look, str):
                faults.append(look)
            else:
                variety.add(*look)
    return faults, variety


def _look(path: Path) -> tuple[np.ndarray, bool] | str:
    """The picture's thumbnail, or what is wrong with the file."""
    try:
        return look_at(open_picture(path))
    except UserError as error:
        return f"{path.parent.name}/{path.name} ({error.what})"

"""Images in one folder per class (ImageNet-1K's tree, or any other): root/train/CLASS/*, root/val/CLASS/*."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fbt_core.data.splits import OnDisk, as_labels, check_count
from fbt_core.errors import UserError

FOLDERS = {"train": ("train",), "test": ("val", "test", "validation")}
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")


def load_split(root: Path | None, split: str, classes: int, count: int) -> OnDisk:
    """One split's paths, classes and files in sorted order, so labels never depend on the file system."""
    folder = split_folder(root, split)
    names = class_names(folder)
    check_count(len(names), classes, "class folders", str(folder))
    _check_same_classes(root, folder, names)
    files, labels = _scan(folder, names)
    check_count(len(files), count, "images", str(folder))
    return OnDisk(folder, np.array(files, dtype=bytes), as_labels(labels))


def _check_same_classes(root: Path, folder: Path, names: list[str]) -> None:
    """Refuse a split with other class folders than the training split's: its labels would mean others."""
    training = class_names(split_folder(root, "train"))
    unlike = sorted(set(training) ^ set(names))
    if unlike:
        shown = ", ".join(unlike[:3])
        raise UserError(f"class folders differ from the training split's: {shown}", where=str(folder))


def split_folder(root: Path, split: str) -> Path:
    """The split's folder under any of its usual names."""
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"no folder '{FOLDERS[split][0]}' with the {split} images", where=str(root))


def class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted: a class's label is its place in this list."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def images_of(folder: Path) -> list[str]:
    """Names of one class folder's image files, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))


def _scan(folder: Path, names: list[str]) -> tuple[list[bytes], list[int]]:
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = images_of(folder / name)
        files += [os.fsencode(f"{name}/{file}") for file in found]
        labels += [label] * len(found)
    return files, labels

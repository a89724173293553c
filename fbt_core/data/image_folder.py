"""Images in one folder per class (ImageNet-1K's tree, or any other): root/train/CLASS/*, root/val/CLASS/*."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fbt_core.data.splits import OnDisk, as_labels, check_count
from fbt_core.errors import UserError

FOLDERS = {"train": ("train",), "test": ("val", "test", "validation")}
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
SHOWN = 10


@dataclass(frozen=True)
class Tree:
    """The files of one split: `images` by class, both sorted; `skipped` are paths of files of other types.

    Hidden files (`.DS_Store`, `._cat.jpg`) belong to neither: they are never images.
    """

    folder: Path
    images: dict[str, list[str]]
    skipped: list[str]

    def paths(self) -> list[str]:
        """All images as paths below the folder, class by class."""
        return [f"{name}/{file}" for name, files in self.images.items() for file in files]

    def class_faults(self, classes: int, known: Collection[str] = ()) -> Iterator[str]:
        """What is wrong with the class folders: their number, names that are not `known`, empty ones."""
        # The count first: if it is wrong, the names below explain it.
        names = set(self.images)
        if len(names) != classes:
            yield f"found {len(names):,} class folders, expected {classes:,}"
        if known:
            yield from counted(sorted(set(known) - names), "class folders are missing")
            yield from counted(sorted(names - set(known)), "unknown class folders")
        # An empty class is a fault: the network would have an output that no image trains.
        empty = [name for name, files in self.images.items() if not files]
        yield from counted(empty, "class folders hold no image")
        hidden = [name for name in self.images if name.startswith(".")]
        yield from counted(hidden, "hidden folders are no classes, delete them")

    def skipped_files(self) -> str | None:
        """How many files of which other types are passed over, with one of them; None if there are none."""
        if not self.skipped:
            return None
        types = Counter(Path(name).suffix.lower() or "no suffix" for name in self.skipped)
        listed = ", ".join(f"{count:,} {suffix}" for suffix, count in types.most_common())
        read = ", ".join(SUFFIXES)
        return f"files of other types are passed over: {listed} (e.g. {self.skipped[0]}); read are {read}"


def load_split(root: Path | None, split: str, classes: int, count: int) -> OnDisk:
    """One split's paths, classes and files in sorted order, so labels never depend on the file system."""
    # Sorted names decide the labels; os.scandir's own order differs from disk to disk.
    tree = read_tree(root, split)
    # A split with other class folders than the training split's would give its labels another meaning.
    known = class_names(split_folder(root, "train")) if split != "train" else ()
    faults = list(tree.class_faults(classes, known))
    if faults:
        raise UserError("; ".join(faults), where=str(tree.folder))
    paths = tree.paths()
    check_count(len(paths), count, "images", str(tree.folder), tree.skipped_files())
    # Counted class by class in the order of `paths`, so the two lists cannot drift apart.
    labels = [label for label, files in enumerate(tree.images.values()) for _ in files]
    # Bytes of fixed width: file names need not be valid text, and an array is shared with loaders.
    return OnDisk(
        tree.folder, np.array([os.fsencode(path) for path in paths], dtype=bytes), as_labels(labels)
    )


def read_tree(root: Path, split: str) -> Tree:
    """All class folders and files of a split; its images are not opened."""
    folder = split_folder(root, split)
    tree = Tree(folder, {}, [])
    for name in class_names(folder):
        files = []
        # scandir says what an entry is; a million further calls take minutes on a network disk.
        for entry in os.scandir(folder / name):
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES):
                files.append(entry.name)
            elif not entry.is_dir():
                tree.skipped.append(f"{name}/{entry.name}")
        tree.images[name] = sorted(files)
    tree.skipped.sort()
    return tree


def split_folder(root: Path, split: str) -> Path:
    """The split's folder under any of its usual names."""
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"no folder '{FOLDERS[split][0]}' with the {split} images", where=str(root))


def class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted: a class's label is its index in this list."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def counted(names: list[str], what: str) -> Iterator[str]:
    """One line that counts the names and lists the first few; none for no names."""
    if names:
        # A million wrong names would bury the message.
        more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        yield f"{len(names):,} {what}: {', '.join(names[:SHOWN])}{more}"

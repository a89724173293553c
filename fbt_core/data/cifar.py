"""CIFAR-100 from the official python files `train` and `test`, read without running anything they contain."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fbt_core.data.splits import InMemory, as_labels, check_count, check_labels
from fbt_core.errors import UserError

KNOWN_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
"""Of the files in cifar-100-python.tar.gz, as torchvision checks them; repacked copies differ."""
KNOWN_SUMS = {
    "train": (6_620_373_279, 6_352_382_090, 5_756_623_363),
    "test": (1_328_830_313, 1_272_680_636, 1_153_999_502),
}
"""Of all bytes of each channel: the means that are published in full (0.5070751592371323, ... of the training
images, 0.5088964127604166, ... of the test images) times 255 and the pixels, which gives whole numbers."""
SUBFOLDER = "cifar-100-python"
PIXELS = 3 * 32 * 32

# All that a pickle of a dict of lists, bytes and one uint8 array needs, under numpy's old and new names.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _OnlyArrays(pickle.Unpickler):
    """An unpickler that builds arrays and plain containers and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, which CIFAR files do not need"
            )
        return super().find_class(module, name)


def load_split(root: Path | None, split: str, classes: int, count: int) -> InMemory:
    """One split as 32x32 colour images with their 100 fine labels."""
    path = data_file(root, split)
    images, labels = read_file(path, classes, count)
    return InMemory(images, labels, "bicubic")


def data_file(root: Path, split: str) -> Path:
    """The split's file, in the root itself or in the archive's folder below it."""
    # The archive unpacks to a folder of its own, and users name either.
    inside = root / SUBFOLDER / split
    return inside if inside.exists() else root / split


def read_file(path: Path, classes: int, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """Images uint8 (N, 32, 32, 3) and labels (N,), every count, shape and range checked."""
    content = _unpickle(path)
    # Everything is checked: a wrong shape would train without an error, on noise.
    pixels = np.asarray(content.get(b"data"))
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or pixels.shape[1] != PIXELS:
        what = f"'data' is {pixels.dtype} {pixels.shape}, expected uint8 ({count}, {PIXELS})"
        raise UserError(what, where=str(path))
    labels = as_labels(_label_list(content, path))
    check_count(len(pixels), count, "images", str(path))
    check_count(len(labels), count, "labels", str(path))
    check_labels(labels, classes, str(path))
    # Stored plane by plane; Pillow and torch's byte kernels want channels last, and one contiguous block.
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def is_official(path: Path, split: str) -> bool:
    """Whether the file is byte for byte the one of the official archive."""
    # Not for security: it is the digest that the data set's page publishes.
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == KNOWN_MD5[split]


def has_official_content(images: np.ndarray, labels: torch.Tensor, split: str) -> bool:
    """Whether pixels and labels add up to the official ones, whatever packed them: a copy saved anew does.

    Compares the sums of each channel and the images of each class; the order of the images may differ.
    """
    # int64: the sum of 50,000 x 1,024 bytes does not fit 32 bits.
    sums = tuple(images.sum((0, 1, 2), dtype=np.int64).tolist())
    # Equal counts per class beside the sums: pixels alone say nothing of labels that were shuffled away.
    return sums == KNOWN_SUMS[split] and len(labels.bincount().unique()) == 1


def _label_list(content: dict[bytes, Any], path: Path) -> list[int]:
    labels = content.get(b"fine_labels")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        keys = ", ".join(sorted(str(key) for key in content))
        raise UserError(f"no list of whole numbers 'fine_labels' (keys: {keys})", where=str(path))
    return labels


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        # encoding="bytes": Python 2 wrote the file, and its keys are bytes.
        content = _OnlyArrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise UserError("file is missing; expected CIFAR-100's python version", where=str(path)) from None
    except Exception as error:  # a damaged pickle raises nearly anything
        what = f"truncated, damaged or unsafe pickle ({error}); expected CIFAR-100's python version"
        raise UserError(what, where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, expected a dict", where=str(path))
    return content

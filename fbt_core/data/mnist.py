"""Fashion-MNIST from its gzipped IDX files: the subset shipped here (embedded) or all 70,000 images."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from fbt_core.data.splits import InMemory, balanced_part, check_count, check_labels
from fbt_core.errors import UserError

EMBEDDED = Path(__file__).parent / "fashion_mnist"
PREFIX = {"train": "train", "test": "t10k"}
SIDE = 28
PADDING = 2  # to 32 pixels, so that a network's strides divide the input


def load_split(root: Path | None, split: str, classes: int, count: int) -> InMemory:
    """One split as 32x32 grey images; `root` None reads the embedded subset.

    Files in a folder must hold exactly `count` images. Of the embedded subset an entry may use a part:
    `count` images, as many of each class.
    """
    folder = root or EMBEDDED
    # The files keep their published names, so a user can drop the originals into a folder.
    image_file = folder / f"{PREFIX[split]}-images-idx3-ubyte.gz"
    label_file = folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    # Only the shipped subset may be cut: a folder with another count is a broken download.
    if root is None:
        if count > len(labels):
            what = f"the shipped subset has {len(labels):,} {split} images, not {count:,}"
            raise UserError(
                what, where=f"{split}_images", hint="use variant `full` and a folder for all images"
            )
        part = balanced_part(labels, count)
        images, labels = images[part], labels[part]
    _check(images, labels, image_file, label_file, count, classes)
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    # "nearest": enlarged by a whole factor, pixels stay sharp blocks and nothing is made up between them.
    return InMemory(padded[..., None], torch.from_numpy(labels.astype(np.int64)), "nearest")


def _check(
    images: np.ndarray, labels: np.ndarray, image_file: Path, label_file: Path, count: int, classes: int
) -> None:
    check_count(len(images), count, "images", str(image_file))
    check_count(len(labels), count, "labels", str(label_file))
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(
            f"images of {images.shape[1:]} pixels, expected ({SIDE}, {SIDE})", where=str(image_file)
        )
    check_labels(torch.from_numpy(labels.astype(np.int64)), classes, str(label_file))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array inside a gzipped IDX file, checked against its own header."""
    content = _decompress(path)
    # The magic number holds type and dimensions: an image file given for a label file is found at once.
    if len(content) < 4 + 4 * dimensions or content[:4] != bytes([0, 0, 8, dimensions]):
        what = f"not an IDX file of bytes with {dimensions} dimension(s) (magic 0x0000080{dimensions})"
        raise UserError(what, where=str(path))
    # Sizes are big-endian, whatever machine reads them.
    shape = tuple(np.frombuffer(content, ">i4", dimensions, offset=4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    # gzip checks its content, but not that all of it was put in.
    if values.size != int(np.prod(shape)):
        expected = int(np.prod(shape))
        what = f"truncated or damaged: {values.size:,} values, expected {expected:,} for shape {shape}"
        raise UserError(what, where=str(path))
    return values.reshape(shape)


def _decompress(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError("file is missing; expected a gzipped IDX file", where=str(path)) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"truncated or damaged gzip file ({error}); expected a complete gzipped IDX file"
        raise UserError(what, where=str(path)) from None

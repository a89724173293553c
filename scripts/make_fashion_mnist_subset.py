"""Write the Fashion-MNIST subset shipped with fbt_core: 20,000 training, 5,000 test images, classes balanced.

    python scripts/make_fashion_mnist_subset.py [--source FOLDER] [--target FOLDER]

The source is Debian's package `dataset-fashion-mnist` (or the same four files from its authors). An image is
chosen by the sha256 of its split and number, so no random number generator decides. Each part of a split is
balanced and keeps the order of the full split; a later part is appended, so the first images never change.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"train": (500, 500, 1000), "t10k": (100, 400)}
"""Images per class in each part of a split."""
CLASSES = 10


def read_idx(path: Path) -> np.ndarray:
    """The array inside a gzipped IDX file (uint8 data)."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """A gzipped IDX file with no name and no time in its header: same array, same bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + np.ascontiguousarray(array).tobytes(), 9, mtime=0))


def chosen(split: str, labels: np.ndarray) -> np.ndarray:
    """Positions of the subset's images in the full split: one part after the other, ascending in each."""
    order = np.array(
        sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{split}-{i}".encode()).digest())
    )
    of_class = [order[labels[order] == label] for label in range(CLASSES)]
    parts, start = [], 0
    for size in PARTS[split]:
        parts.append(np.sort(np.concatenate([images[start : start + size] for images in of_class])))
        start += size
    return np.concatenate(parts)


def make_subset(source: Path, target: Path) -> list[Path]:
    """Write the four files into `target`; returns their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for split in PARTS:
        images, labels = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
        keep = chosen(split, read_idx(source / labels))
        for name in (images, labels):
            write_idx(target / name, read_idx(source / name)[keep])
            written.append(target / name)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--target", type=Path, default=ROOT / "fbt_core/data/fashion_mnist")
    arguments = parser.parse_args()
    for path in make_subset(arguments.source, arguments.target):
        print(f"{path} {path.stat().st_size} bytes sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()

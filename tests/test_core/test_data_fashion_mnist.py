"""Fashion-MNIST: the shipped subset, and files that are not what they should be."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from fbt_core.data import mnist
from fbt_core.data.splits import balanced_part
from fbt_core.errors import UserError
from scripts.make_fashion_mnist_subset import make_subset, write_idx
from tests.test_core.engine_runs import CLASSES, TEST, TRAIN, write_images

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def content(path: Path) -> bytes:
    return hashlib.sha256(gzip.decompress(path.read_bytes())).digest()


def test_embedded_subset_is_balanced_and_padded():
    for split, count in (
        ("train", 20000),
        ("train", 5000),
        ("train", 2000),
        ("test", 1000),
        ("test", 3000),
        ("test", 5000),
    ):
        images = mnist.load_split(None, split, 10, count)
        assert images.images.shape == (count, 32, 32, 1)
        assert np.bincount(images.labels.numpy()).tolist() == [count // 10] * 10
        assert not images.images[:, [0, 1, -2, -1]].any()
        assert not images.images[:, :, [0, 1, -2, -1]].any()
        assert images.picture(7).mode == "RGB"


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [
        ("train", 5000, "d525537f6c2ad78042f1c1c3b5b619e232a9f40ee1c8f18fc3bf6ae7b7476e37"),
        ("test", 1000, "e0c461b39f9a959e834ad7ae8d9e792e2a0b4289cce4445e240e6dfd21bbcd9a"),
    ],
)
def test_a_larger_subset_leaves_the_images_of_earlier_runs_as_they_were(split, count, digest):
    images = mnist.load_split(None, split, 10, count)
    content = images.images.tobytes() + images.labels.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_a_part_has_the_first_images_of_each_class_in_the_order_of_the_file():
    whole, part = mnist.load_split(None, "train", 10, 5000), mnist.load_split(None, "train", 10, 1000)
    keep = np.sort(np.concatenate([np.flatnonzero(whole.labels == label)[:100] for label in range(10)]))
    assert np.array_equal(part.images, whole.images[keep])
    assert np.array_equal(part.labels, whole.labels[keep])
    assert balanced_part(np.array([0, 0, 0, 1, 1, 2]), 4).tolist() == [0, 1, 3, 5]


def test_more_images_than_are_shipped_are_refused():
    with pytest.raises(UserError, match="test_images: the shipped subset has 5,000 test images, not 6,000"):
        mnist.load_split(None, "test", 10, 6000)


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_script_makes_the_shipped_files_again(tmp_path):
    for made in make_subset(DEBIAN, tmp_path):
        shipped = mnist.EMBEDDED / made.name
        assert content(made) == content(shipped)
        # Not the header: its last byte names the operating system, which Python 3.13 leaves open.
        assert made.read_bytes()[10:] == shipped.read_bytes()[10:]


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_full_dataset_is_read_from_its_folder():
    assert len(mnist.load_split(DEBIAN, "test", 10, 10_000)) == 10_000


def rewrite(path: Path, change) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


LABELS, IMAGES = "train-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (IMAGES, Path.unlink, ["missing"]),
        (IMAGES, cut, ["truncated"]),
        (IMAGES, lambda path: path.write_bytes(b"not gzip"), ["gzip"]),
        (IMAGES, lambda path: rewrite(path, lambda raw: raw[:-100]), ["truncated", f"{TRAIN * 784:,}"]),
        (IMAGES, lambda path: rewrite(path, lambda raw: b"\x00\x00\x0d\x03" + raw[4:]), ["IDX"]),
        (IMAGES, lambda path: write_idx(path, np.zeros((TRAIN, 27, 28), np.uint8)), ["27", "28"]),
        (IMAGES, lambda path: write_idx(path, np.zeros((5, 28, 28), np.uint8)), ["5", f"expected {TRAIN}"]),
        (LABELS, lambda path: write_idx(path, np.zeros(5, np.uint8)), ["5", f"expected {TRAIN}"]),
        (LABELS, lambda path: write_idx(path, np.full(TRAIN, 9, np.uint8)), ["0 to 3"]),
    ],
)
def test_wrong_files_are_named_with_what_was_expected(tmp_path, name, spoil, words):
    write_images(tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(UserError) as raised:
        mnist.load_split(tmp_path, "train", CLASSES, TRAIN)
    assert all(word in str(raised.value) for word in [name, *words]), raised.value


def test_generated_files_load(tmp_path):
    write_images(tmp_path)
    assert len(mnist.load_split(tmp_path, "train", CLASSES, TRAIN)) == TRAIN
    assert len(mnist.load_split(tmp_path, "test", CLASSES, TEST)) == TEST

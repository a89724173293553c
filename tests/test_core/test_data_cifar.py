"""CIFAR-100's python files: real photographs, refused pickles, wrong counts."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fbt_core.data import cifar
from fbt_core.errors import UserError
from fbt_core.measure.check_data import check_data
from fbt_core.spec import DatasetSpec
from tests.test_core.photographs import CIFAR, photographs


def write_file(root: Path, split: str, protocol: int = 2, **changes) -> list[tuple[Path, int]]:
    """A file as the official archive has it, with 20 real images."""
    originals = photographs(CIFAR)
    rows = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).ravel() for path, _ in originals]
    labels = [label for _, label in originals]
    content = {
        b"data": np.stack(rows),
        b"fine_labels": labels,
        b"coarse_labels": labels,
        b"filenames": [b"x"],
    }
    content.update({name.encode(): value for name, value in changes.items()})
    root.mkdir(parents=True, exist_ok=True)
    with (root / split).open("wb") as file:
        pickle.dump(content, file, protocol)
    return originals


SPEC = DatasetSpec(
    name="cifar100",
    loader="cifar100",
    variant="full",
    classes=100,
    train_images=20,
    test_images=20,
    image_size=224,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("folder", [".", cifar.SUBFOLDER])
def test_images_and_labels_are_the_photographs(tmp_path, folder, protocol):
    originals = write_file(tmp_path / folder, "train", protocol)
    split = cifar.load_split(tmp_path, "train", 100, 20)
    assert split.labels.tolist() == [label for _, label in originals]
    for i, (path, _) in enumerate(originals):
        assert np.array_equal(np.asarray(split.picture(i)), np.asarray(Image.open(path).convert("RGB")))


class Bomb:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path):
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Bomb(f"touch {tmp_path}/ran")}))
    with pytest.raises(UserError, match=r"train.*(posix|nt)\.system"):
        cifar.load_split(tmp_path, "train", 100, 20)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": np.zeros((20, 3000), np.uint8)}, ["3000", "3072"]),
        ({"data": np.zeros((20, 3072), np.float32)}, ["float32"]),
        ({"data": np.zeros((19, 3072), np.uint8)}, ["19", "expected 20"]),
        ({"fine_labels": [1] * 19}, ["19", "expected 20"]),
        ({"fine_labels": [100] * 20}, ["0 to 99"]),
        ({"fine_labels": "words"}, ["fine_labels"]),
    ],
)
def test_wrong_content_is_named(tmp_path, changes, words):
    write_file(tmp_path, "train", **changes)
    with pytest.raises(UserError) as raised:
        cifar.load_split(tmp_path, "train", 100, 20)
    assert all(word in str(raised.value) for word in ["train", *words]), raised.value


def test_truncated_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="train: file is missing"):
        cifar.load_split(tmp_path, "train", 100, 20)
    write_file(tmp_path, "train")
    (tmp_path / "train").write_bytes((tmp_path / "train").read_bytes()[:1000])
    with pytest.raises(UserError, match="train: truncated"):
        cifar.load_split(tmp_path, "train", 100, 20)


def test_official_content_packed_anew_is_no_reason_to_warn(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_file(tmp_path, split, protocol=4, fine_labels=list(range(20)))
        pixels = cifar.load_split(tmp_path, split, 100, 20).images.astype(int)
        monkeypatch.setitem(cifar.KNOWN_SUMS, split, tuple(pixels.sum((0, 1, 2)).tolist()))
    assert [finding.level for finding in check_data("cifar100", SPEC, tmp_path)] == ["good", "good"]
    changed = cifar.load_split(tmp_path, "test", 100, 20).images.transpose(0, 3, 1, 2).reshape(20, -1).copy()
    changed[7, 99] ^= 1
    write_file(tmp_path, "test", data=changed, fine_labels=list(range(20)))
    write_file(tmp_path, "train", fine_labels=[0, *range(19)])
    findings = check_data("cifar100", SPEC, tmp_path)
    assert [finding.level for finding in findings] == ["good", "good", "warning", "warning"]


def test_check_warns_of_files_that_are_not_the_official_ones(tmp_path):
    write_file(tmp_path, "train")
    write_file(tmp_path, "test")
    levels = [finding.level for finding in check_data("cifar100", SPEC, tmp_path)]
    assert levels == ["good", "good", "warning", "warning"]
    (tmp_path / "test").unlink()
    findings = check_data("cifar100", SPEC, tmp_path)
    assert [finding.level for finding in findings] == ["good", "error", "warning"]
    assert findings[1].where == str(tmp_path / "test")

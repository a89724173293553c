"""Image folders: real photographs in ImageNet's tree, checked completely, and files that vanish."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from fbt_core.data import image_folder
from fbt_core.data.crops import draw_crops
from fbt_core.data.order import AUGMENT, BatchKey, generator
from fbt_core.data.transforms import test_pipeline as make_test_pipeline
from fbt_core.data.transforms import training_pipeline
from fbt_core.errors import UserError
from fbt_core.measure.check_data import _check_counts, check_data
from fbt_core.spec import AugmentationSpec, DatasetSpec
from tests.test_core.engine_runs import EVERYTHING, PLAIN, arguments, in_child, make_spec, network
from tests.test_core.photographs import IMAGENET, photographs

CLASSES = ("bird", "cat", "dog", "fish")


def spec(train: int = 12, test: int = 8) -> DatasetSpec:
    return DatasetSpec(
        name="photos",
        loader="image_folder",
        variant="full",
        classes=4,
        train_images=train,
        test_images=test,
        image_size=64,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


@pytest.fixture
def root(tmp_path) -> Path:
    """Twenty photographs dealt to four classes: twelve to train, eight to test."""
    for i, (path, _) in enumerate(photographs(IMAGENET)):
        folder = tmp_path / "photos" / ("train" if i < 12 else "val") / CLASSES[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{i:02}{path.suffix}")
    return tmp_path / "photos"


def load(root: Path, split: str = "train", count: int = 12):
    return image_folder.load_split(root, split, 4, count)


def test_labels_are_the_places_of_the_sorted_class_names(root):
    split = load(root)
    assert [split.path(i).parent.name for i in range(12)] == [CLASSES[label] for label in split.labels]
    assert len(load(root, "test", 8)) == 8
    assert split.picture(0).mode == "RGB"


def test_a_part_keeps_names_and_labels_together(root):
    whole = load(root)
    part = whole.part(np.array([1, 5, 9]))
    assert [part.path(i) for i in range(3)] == [whole.path(i) for i in (1, 5, 9)]
    assert part.labels.tolist() == whole.labels[[1, 5, 9]].tolist() and len(part) == 3


def test_batches_of_photographs(root):
    augmentation = AugmentationSpec(**EVERYTHING)
    pipeline = training_pipeline(load(root), spec(), augmentation, seed=0)
    key = BatchKey((0, 5, 11), (0, 1, 2), 3, epoch=0, step=0)
    batch = pipeline(load(root), key)
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.uint8
    assert torch.equal(batch, pipeline(load(root), key))
    alone = BatchKey((11,), (2,), 3, epoch=0, step=0)
    assert torch.equal(pipeline(load(root), alone)[0], batch[2])
    assert make_test_pipeline(load(root), spec())(load(root), key).shape == (3, 3, 64, 64)


def test_photographs_are_decoded_cropped_and_flipped_as_by_pillow(root):
    """The same pixels to the last bit before they are resized, and then within two levels."""
    split, rows = load(root), list(range(12))
    for i in rows:
        pixels = split.file(i).pixels()
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(split.picture(i)))
    augmentation = AugmentationSpec(**{**PLAIN, "crop_scale": (0.08, 1.0)})
    size = spec().model_copy(update={"image_size": 224})
    pipeline = training_pipeline(split, size, augmentation, seed=3)
    batch = pipeline(split, BatchKey(tuple(rows), tuple(rows), 12, 0, 0))
    draws = generator(3, AUGMENT, 0, 0)
    flips, crops = draws.random(12) < 0.5, draw_crops(draws, 12, (0.08, 1.0))
    assert 0 < flips.sum() < 12
    for i in rows:
        picture = split.picture(i)
        ((top, left, height, width),) = crops.of([i]).boxes(np.array(picture.size[::-1])).tolist()
        kind = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[crops.filters[i]]
        crop = picture.crop((left, top, left + width, top + height)).resize((224, 224), kind)
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips[i] else crop
        difference = batch[i].permute(1, 2, 0).int() - torch.from_numpy(np.array(crop)).int()
        assert difference.abs().max() <= 2
        assert difference.float().mean().abs() < 0.02


def test_an_uncropped_photograph_is_its_central_square(root):
    split, size = load(root), spec().model_copy(update={"image_size": 100})
    Image.new("RGB", (300, 100), "red").save(split.path(0))
    picture = Image.open(split.path(0)).copy()
    picture.paste("blue", (100, 0, 200, 100))
    picture.save(split.path(0), quality=100, subsampling=0)
    batch = training_pipeline(split, size, AugmentationSpec(**PLAIN), seed=0)(
        split, BatchKey((0,), (0,), 1, 0, 0)
    )
    assert batch[0, 2].float().mean() > 240
    assert batch[0, 0].float().mean() < 15


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_mode_have_pillows_pixels(root, mode):
    split = load(root)
    Image.open(split.path(1)).convert(mode).save(split.path(1), "JPEG")
    assert np.array_equal(split.file(1).pixels().permute(1, 2, 0), np.asarray(split.picture(1)))


def test_a_png_that_is_called_jpeg_and_a_cut_jpeg(root):
    split = load(root)
    picture, content = split.picture(2), split.path(3).read_bytes()
    picture.save(split.path(2), "PNG")
    assert np.array_equal(split.file(2).pixels().permute(1, 2, 0), np.asarray(picture))
    split.path(3).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{split.path(3).name}: image cannot be decoded .*truncated"):
        split.file(3).pixels()


def test_a_picture_too_large_to_be_decoded_safely_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"00\.\w+: image cannot be decoded .*decompression bomb"):
        load(root).picture(0)
    with pytest.raises(UserError, match="decompression bomb"):
        load(root).file(0)
    assert {finding.level for finding in check_data("photos", spec(), root, processes=1)} == {"error"}


def test_complete_root_has_no_errors(root, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert check_data("photos", spec(), root) == check_data("photos", spec(), root, processes=1)
    findings = check_data("photos", spec(), root, processes=2)
    assert [finding.level for finding in findings] == ["good", "good"]


def spoil_image(root: Path) -> None:
    path = next((root / "train" / "cat").iterdir())
    path.write_bytes(path.read_bytes()[:2000])


def empty_class(root: Path) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root / "val" / "fish"), ["3 class folders, expected 4", "missing: fish"]),
        (lambda root: (root / "val" / "owl").mkdir(), ["5 class folders, expected 4", "unknown", "owl"]),
        (empty_class, ["1 class folders hold no image: dog", "9 images, expected 12"]),
        (
            lambda root: next((root / "train" / "cat").iterdir()).unlink(),
            ["11 images, expected 12", "1 class folders hold fewer images than most (3)", ": cat (2)"],
        ),
        (
            lambda root: shutil.copy(
                next((root / "val" / "fish").iterdir()), root / "val" / "fish" / "x.png"
            ),
            ["9 images, expected 8", "1 class folders hold more images than most (2)", ": fish (3)"],
        ),
        (spoil_image, ["1 images cannot be decoded: cat/"]),
        (lambda root: shutil.rmtree(root / "val"), ["no folder 'val'"]),
    ],
)
def test_check_says_exactly_what_is_wrong(root, spoil, words):
    spoil(root)
    text = "\n".join(map(str, check_data("photos", spec(), root, processes=1)))
    assert all(word in text for word in words), text


def test_imagenet_classes_are_known_by_name(root):
    (root / "train" / "n01440764").mkdir()
    many = spec().model_copy(update={"classes": 1000})
    text = "\n".join(map(str, check_data("imagenet", many, root, processes=1)))
    assert "999 class folders are missing: n01443537" in text
    assert "unknown class folders: bird, cat" in text


def test_imagenet_classes_with_a_wrong_number_of_images_are_named(tmp_path):
    """Its test split has 50 images a class, its training split 732 to 1,300."""
    names = sorted(ImageNetInfo().label_names())
    test, train = Counter(dict.fromkeys(names, 50)), Counter(dict.fromkeys(names, 1300))
    assert not list(_check_counts(tmp_path, "test", test, 50_000))
    test[names[3]], test[names[7]] = 51, 49
    (finding,) = _check_counts(tmp_path, "test", test, 50_000)
    assert finding.what.endswith(f"another number of images than 50: {names[7]} (49), {names[3]} (51)")
    train[names[5]], train[names[6]] = 731, 900
    (finding,) = _check_counts(tmp_path, "train", train, 1_281_167)
    assert finding.what.endswith(f"than 732 to 1,300: {names[5]} (731)")
    train[names[5]] = 732
    assert not list(_check_counts(tmp_path, "train", train, train.total()))
    (finding,) = _check_counts(tmp_path, "train", train, train.total() + 1)
    assert finding.what.endswith(f"for what is missing: {names[5]} (732), {names[6]} (900)")


def test_a_part_of_imagenet_is_what_its_entry_says(root):
    """1,000 WordNet folders with few images: check-data accepts what the loader accepts."""
    source = root / "small.png"
    Image.open(next((root / "train" / "cat").iterdir())).resize((32, 32)).save(source)
    for split in ("train", "val"):
        shutil.rmtree(root / split)
        for name in ImageNetInfo().label_names():
            (root / split / name).mkdir(parents=True)
            (root / split / name / f"x{source.suffix}").symlink_to(source)
    part = spec(1000, 1000).model_copy(update={"classes": 1000})
    assert len(image_folder.load_split(root, "test", 1000, 1000)) == 1000
    assert "error" not in {result.level for result in check_data("imagenet", part, root, processes=1)}


def test_missing_root_names_the_setting(tmp_path):
    (finding,) = check_data("imagenet", spec(), tmp_path / "nowhere")
    assert (finding.level, finding.where) == ("error", "data_roots.imagenet")


def test_loader_refuses_wrong_counts_and_unlike_classes(root):
    with pytest.raises(UserError, match="found 12 images, expected 13"):
        load(root, count=13)
    (root / "val" / "fish").rename(root / "val" / "owl")
    with pytest.raises(UserError, match="class folders are missing: fish.*unknown class folders: owl"):
        load(root, "test", 8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty_class, "1 class folders hold no image: dog"),
        (
            lambda root: (root / "train" / ".ipynb_checkpoints").mkdir(),
            "found 5 class folders, expected 4.*hold no image: .ipynb_checkpoints.*delete them",
        ),
    ],
)
def test_training_refuses_the_class_folders_that_the_check_refuses(root, spoil, words):
    spoil(root)
    text = "; ".join(result.what for result in check_data("photos", spec(), root, processes=1))
    assert re.search(words, text), text
    with pytest.raises(UserError, match=words):
        load(root)


def test_files_of_other_types_are_named_by_check_and_training(root):
    for name in ("a.tif", "b.TIF", "c.gif", "d.jfif", "e.avif", ".DS_Store", "._f.jpg"):
        (root / "train" / "cat" / name).write_bytes(b"")
    words = r"passed over: 2 \.tif, 1 \.gif, 1 \.jfif, 1 \.avif \(e.g. cat/a.tif\); read are .jpeg, .jpg"
    results = check_data("photos", spec(), root, processes=1)
    assert [result.level for result in results] == ["warning", "good", "good"]
    assert re.search(words, results[0].what), results[0].what
    assert len(load(root)) == 12
    with pytest.raises(UserError, match=f"found 12 images, expected 16; files of other types are {words}"):
        load(root, count=16)


def test_image_that_vanishes_in_mid_epoch_stops_the_run_and_a_rerun_continues(root, tmp_path, capfd):
    run = make_spec(EVERYTHING, dataset=spec().model_dump(), student=network(), recipe__batch_size=6)
    command = arguments(run, tmp_path / "runs", root, workers=1)
    command[3] = command[3].replace('"squares"', '"photos"')
    victim = next((root / "train" / "cat").iterdir())

    def vanish():
        from fbt_core.learner import Learner

        resume = Learner.resume
        Learner.resume = lambda *values: (victim.rename(victim.with_suffix(".gone")), resume(*values))

    assert in_child(command, vanish) == 1
    error = capfd.readouterr().err.strip().splitlines()
    assert error[-1].startswith(f"error: {victim}: image file is gone"), error
    assert not (tmp_path / "runs" / run.id / "metrics.json").exists()
    victim.with_suffix(".gone").rename(victim)
    assert in_child(command) == 0

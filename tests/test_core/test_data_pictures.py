"""Every mode that Pillow can give becomes RGB or is refused by name; blank training sets are reported."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbt_core.data.pictures import Variety, look_at, open_picture, to_rgb
from fbt_core.data.splits import InMemory, blank_images
from fbt_core.errors import UserError
from fbt_core.measure.check_data import check_data
from scripts.make_fashion_mnist_subset import write_idx
from tests.test_core.engine_runs import TRAIN, arguments, in_child, make_spec, write_images
from tests.test_core.photographs import IMAGENET, photographs

RED, GREY = (200, 30, 90), (77, 77, 77)


def saved(tmp_path: Path, picture: Image.Image, suffix: str, **options: object) -> Image.Image:
    """What the loader makes of a picture's file; no warning may be seen."""
    path = tmp_path / f"picture{suffix}"
    picture.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_picture(path)
    assert opened.mode == "RGB"
    return opened


def sixteen_bits(values: list[int], dtype: str = "uint16") -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, ".png", (255, 255, 255)),
        ("L", 77, ".png", GREY),
        ("LA", (77, 0), ".png", GREY),
        ("RGB", RED, ".png", RED),
        ("RGBA", (*RED, 0), ".png", RED),
        ("CMYK", (55, 225, 165, 0), ".jpg", RED),
    ],
)
def test_modes_of_files(tmp_path, mode, colour, suffix, expected):
    picture = saved(tmp_path, Image.new(mode, (8, 8), colour), suffix)
    assert np.abs(np.subtract(picture.getpixel((3, 3)), expected)).max() <= 3 * (suffix == ".jpg")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_of_eight_bits_are_pillows_conversion(mode):
    photograph = Image.open(photographs(IMAGENET)[0][0]).convert("RGB").resize((40, 30))
    if mode in ("LA", "PA"):
        photograph = photograph.convert(mode[0])
    picture = photograph.convert(mode)
    assert np.array_equal(to_rgb(picture, "x"), picture.convert("RGB"))


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_palettes_with_transparency_keep_their_colours(tmp_path, transparency):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([*RED, 1, 2, 3])
    picture.putpixel((0, 0), 1)
    opened = saved(tmp_path, picture, ".png", transparency=transparency)
    assert opened.getpixel((2, 2)) == RED
    assert opened.getpixel((0, 0)) == (1, 2, 3)


def test_sixteen_bit_greyscale_is_scaled_to_eight(tmp_path):
    values = [0, 128, 129, 257, 32_896, 65_406, 65_535]
    expected = [0, 0, 1, 1, 128, 254, 255]
    for picture in (sixteen_bits(values), sixteen_bits(values, "int32"), sixteen_bits(values, ">u2")):
        assert np.asarray(to_rgb(picture, "x"))[0, :, 1].tolist() == expected, picture.mode
    opened = saved(tmp_path, sixteen_bits(values), ".png")
    assert np.asarray(opened)[0, :, 0].tolist() == expected
    assert Image.open(tmp_path / "picture.png").mode in ("I;16", "I")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (sixteen_bits([0, 70_000], "int32"), "32-bit numbers from 0 to 70,000"),
        (sixteen_bits([-3, 7], "int32"), "32-bit numbers from -3 to 7"),
        (Image.new("F", (4, 4), 0.5), "32-bit floats"),
    ],
)
def test_pictures_of_unknown_range_are_refused_by_name(tmp_path, picture, words):
    path = tmp_path / "picture.tif"
    picture.save(path)
    with pytest.raises(UserError, match=f"picture.tif: image holds {words}.*save it with 8 or 16 bits"):
        open_picture(path)


def grey_images(levels: list[int]) -> InMemory:
    images = np.zeros((len(levels), 8, 8, 1), np.uint8)
    images[:, 2:6, 2:6] += np.array(levels, np.uint8)[:, None, None, None]
    return InMemory(images, torch.zeros(len(levels), dtype=torch.int64), "nearest")


def test_blank_and_equal_images_are_reported():
    assert blank_images(grey_images([0, 0, 0, 9])) == "3 of 4 images are one colour only; look at the files"
    assert "hardly differ from each other (by 0.0 of 255 levels)" in blank_images(grey_images([90] * 5))
    assert blank_images(grey_images([10, 60, 110, 200, 250])) is None
    assert blank_images(grey_images([10])) is None


def test_spread_is_the_deviation_between_images():
    variety, draws = Variety(), np.random.default_rng(0)
    pictures = draws.integers(0, 255, (20, 16, 16, 3)).astype(np.uint8)
    for picture in pictures:
        variety.add(*look_at(Image.fromarray(picture)))
    assert variety.spread == pytest.approx(np.sqrt(pictures.var(0).mean()))


def test_a_training_set_of_one_image_is_reported_by_check_and_training(tmp_path, capfd):
    root, run = write_images(tmp_path / "data"), make_spec(recipe__epochs=1)
    write_idx(root / "train-images-idx3-ubyte.gz", np.full((TRAIN, 28, 28), 200, np.uint8))
    results = [str(result) for result in check_data("squares", run.dataset, root)]
    assert any("warning" in result and "train: the 96 images hardly differ" in result for result in results)
    assert in_child(arguments(run, tmp_path / "runs", root)) == 0
    error = capfd.readouterr().err
    assert error.count("warning: squares, training images: the") == 1
    assert "hardly differ" in error


def test_a_training_folder_of_white_images_is_reported(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (20, 20), 255).save(tmp_path / split / name / f"{number}.png")
    changes = {"loader": "image_folder", "classes": 2, "train_images": 6, "test_images": 6}
    spec = make_spec().dataset.model_copy(update=changes)
    results = [str(result) for result in check_data("white", spec, tmp_path, processes=1)]
    assert sum("6 of 6 images are one colour only" in result for result in results) == 2

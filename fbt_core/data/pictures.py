"""Image files as RGB pictures, whatever mode Pillow gives them; and whether pictures show anything at all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from fbt_core.errors import UserError

RGB = ImageReadMode.RGB
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
THUMBNAIL = (16, 16)
SPREAD = 4.0
"""Levels of 255 that a data set's thumbnails differ by at least; photographs and drawings differ by 40."""


def open_picture(path: Path) -> Image.Image:
    """A completely decoded RGB picture, or a UserError naming the file and what is wrong with it."""
    with _naming(path), Image.open(path) as picture:
        return to_rgb(picture, str(path))


class ImageFile:
    """An image file read into memory, of which only the header is decoded: `side` is (height, width)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _naming(path):
            # One read for two uses: the header gives the size for the crop, the content is decoded later.
            self.content = path.read_bytes()
            self.picture = Image.open(io.BytesIO(self.content))
        # Pillow says (width, height), everything else here (height, width).
        self.side = self.picture.size[::-1]

    def pixels(self) -> Tensor:
        """The pixels of `open_picture` as bytes (3, H, W), decoded faster if it is a JPEG."""
        if self.picture.format == "JPEG" and self.picture.mode in ("L", "RGB"):
            # Pillow says what is wrong with a file that this decoder refuses, if it refuses it too.
            with contextlib.suppress(RuntimeError):
                return decode_jpeg(torch.frombuffer(bytearray(self.content), dtype=torch.uint8), RGB)
        with _naming(self.path):
            return torch.from_numpy(np.array(to_rgb(self.picture, str(self.path)))).permute(2, 0, 1)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a damaged or missing image file raises becomes a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError("image file is gone; expected a readable image", where=str(path)) from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image cannot be decoded ({error})", where=str(path)) from None


def to_rgb(picture: Image.Image, where: str) -> Image.Image:
    """The picture with three channels of 8 bits, by its mode:

    - RGB as it is; 1, L, P, CMYK, YCbCr, HSV by Pillow's conversion;
    - LA, PA, RGBA and palettes with transparency lose their alpha and keep their colours, as in torchvision
      and timm;
    - I;16 and I (16-bit greyscale PNG, PGM, TIFF) from 16 to 8 bits: 65,535 is white;
    - F and values of I that need more than 16 bits are refused: no range of brightness is agreed on.
    """
    # Before convert(): 16 bits have to be scaled to 8, and Pillow clips those of mode I at 255.
    if picture.mode in SIXTEEN_BITS:
        return Image.fromarray(_eight_bits(picture, where)).convert("RGB")
    if picture.mode == "F":
        # Floats may mean 0..1 or 0..255: guessing would train on black images.
        raise _unknown_range("32-bit floats", where)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # from P to RGB at once, Pillow warns of the transparency it drops
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image, where: str) -> np.ndarray:
    """16-bit brightness (H, W) rounded to 8 bits."""
    # int64, because mode I may hold negative numbers, which uint16 would wrap around.
    values = np.asarray(picture).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise _unknown_range(f"32-bit numbers from {low:,} to {high:,}", where)
    # 65,535 / 257 = 255, and 128 rounds to nearest.
    return ((values + 128) // 257).astype(np.uint8)


def _unknown_range(content: str, where: str) -> UserError:
    hint = "save it with 8 or 16 bits per channel"
    return UserError(f"image holds {content}, whose black and white are not known", where=where, hint=hint)


def look_at(picture: Image.Image) -> tuple[np.ndarray, bool]:
    """A thumbnail (16, 16, 3) of an RGB picture, and whether the picture is one colour only."""
    # Pillow finds each channel's range without an array of the pixels.
    one_colour = all(low == high for low, high in picture.getextrema())
    return np.asarray(picture.resize(THUMBNAIL, Image.Resampling.BOX)), one_colour


class Variety:
    """How much the pictures of a data set differ from each other: their thumbnails' sums, one at a time."""

    def __init__(self) -> None:
        self.count = self.one_colour = 0
        # Sums alone are kept: a data set's thumbnails would not fit in memory.
        self.sum = np.zeros((*THUMBNAIL, 3))
        self.squares = np.zeros((*THUMBNAIL, 3))

    def add(self, thumbnail: np.ndarray, one_colour: bool) -> None:
        self.count += 1
        self.one_colour += one_colour
        self.sum += thumbnail
        self.squares += thumbnail.astype(np.float64) ** 2

    @property
    def spread(self) -> float:
        """Standard deviation over the pictures, in levels of 255, root mean square over the thumbnail."""
        # Rounding may leave a variance just below zero, whose root is NaN.
        variance = self.squares / self.count - (self.sum / self.count) ** 2
        return float(np.sqrt(max(0.0, variance.mean())))

    def problem(self) -> str | None:
        """What a user should know: most pictures are blank, or all are nearly the same. None if neither."""
        # Blank first: thumbnails of blank pictures are alike as well, and this says why.
        if 2 * self.one_colour > self.count:
            return f"{self.one_colour:,} of {self.count:,} images are one colour only; look at the files"
        if self.count > 1 and self.spread < SPREAD:
            levels = f"by {self.spread:.1f} of 255 levels"
            return f"the {self.count:,} images hardly differ from each other ({levels}); look at the files"
        return None

"""From an image file to pixels: what a person sees, at 8 bits a channel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.checks import BROKEN, InputError
from poise.preparation import Channels, Preparation

LARGEST = 89_478_485  # pixels; Pillow's limit, a quarter of a gigabyte in colour
GREY = ("1", "L", "LA", "La", "I", "F")
WAYS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def opened(file: BinaryIO | Path, name: str) -> Image.Image:
    """The image in a file, its header read and nothing decoded yet.

    Raises:
        InputError: the file is no image, or one of more than 89 megapixels.
    """
    with _reading(name):
        image = Image.open(file)
    width, height = image.size
    if width * height > LARGEST:
        image.close()
        raise too_large(name, f"{width} x {height}")
    return image


@contextmanager
def unwarned() -> Iterator[None]:
    """Without Pillow's warnings of the large images that are refused here; for one thread at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def colours(image: Image.Image) -> Channels:
    """Whether a file holds grey values or colours, by its header."""
    return "grey" if image.mode.startswith("I;") or image.mode in GREY else "rgb"


def decoded(image: Image.Image, name: str, channels: Channels) -> Image.Image:
    """The image as mode L or RGB.

    16-bit values give their high byte, transparent parts are seen on white, palettes and CMYK become
    colours, colours become grey by ITU-R 601. Tags that turn an image (EXIF) are not followed, as in
    torchvision.

    Raises:
        InputError: a damaged file, or values without a known range.
    """
    with _reading(name):
        image.load()
    if image.mode.startswith(("I", "F")):
        image = _high_byte(image, name)
    with _reading(name):
        if image.has_transparency_data:
            seen = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), seen).convert("RGB")
        return image.convert("L" if channels == "grey" else "RGB")


def prepared(image: Image.Image, by: Preparation) -> NDArray[np.uint8]:
    """The pixels (c, h, w) of an image of mode L or RGB, cut and resized.

    >>> prepared(Image.new("L", (6, 4), 9), Preparation(size=2)).tolist()
    [[[9, 9], [9, 9]]]
    """
    if by.crop is not None:
        image = centre(image, by.crop)
    if by.size is not None:
        short = by.resize or by.size
        width, height = image.size
        least = min(width, height)
        sides = (int(short * width / least), int(short * height / least))
        image = centre(
            image.resize(sides, WAYS[by.interpolation]) if sides != image.size else image, by.size
        )
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def centre(image: Image.Image, side: int) -> Image.Image:
    """The square in the centre, with black where the image is smaller; torchvision's rounding."""
    left, top = (_start(length, side) for length in image.size)
    return image.crop((left, top, left + side, top + side))  # Pillow fills with 0 outside


def unreadable(name: str, error: Exception) -> InputError:
    """The refusal of a file that is damaged or no image."""
    reason = (
        str(error).partition("\n")[0] if "cannot identify" not in str(error) else "no known image format"
    )
    return InputError(
        f"{name} cannot be read as an image ({reason or type(error).__name__}): replace it, or leave such "
        "files out with skip_damaged=True (--read.skip-damaged)"
    )


def too_large(name: str, pixels: str) -> InputError:
    """The refusal of an image that would fill the memory."""
    return InputError(
        f"{name} has {pixels} pixels, and at most {LARGEST:,} are decoded: scale it down, or leave "
        "such files "
        "out with skip_damaged=True (--read.skip-damaged)"
    )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Around calls of Pillow alone: what it cannot read is refused by the file's name."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise too_large(name, "more than 178 million") from error
    except Image.DecompressionBombWarning as error:  # where warnings are errors
        raise too_large(name, "more than 89 million") from error
    except BROKEN as error:
        raise unreadable(name, error) from error


def _start(length: int, side: int) -> int:
    return -((side - length) // 2) if length < side else round((length - side) / 2)


def _high_byte(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise InputError(
            f"{name} holds values beyond 16 bits or fractions (mode {image.mode}), whose black and "
            "white are "
            "not known: save it with 8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))

"""From an image file to pixels: what a person sees, at 8 bits a channel."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from poise.checks import BROKEN, InputError
from poise.preparation import INTERPOLATIONS, Channels, Preparation

LARGEST = 89_478_485  # pixels; Pillow's limit, a quarter of a gigabyte in colour
# no format that Pillow hands to another program (PostScript), or that holds no pixels of its own
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
DARK = 1 << 12  # 16-bit values all under a sixteenth of white: they hold 12 bits, or 8
ORIENTATION = 0x0112  # the EXIF tag
GREY = ("1", "L", "LA", "La", "I", "F")
WAYS: dict[str, Image.Resampling] = {way: Image.Resampling[way.upper()] for way in INTERPOLATIONS}


def open_image(file: BinaryIO | Path, name: str) -> Image.Image:
    """The image in a file, its header read and nothing decoded yet.

    Raises:
        InputError: the file is no image, or one of more than 89 megapixels.
    """
    with _reading(name):
        image = Image.open(file, formats=FORMATS)
        image.filename = ""  # or Pillow maps it, and reads a TIFF that is to be turned in the wrong order
    width, height = image.size
    if width * height > LARGEST:
        image.close()
        raise too_large(name, f"{width} x {height}")
    return image


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of the large images that are refused here; for one thread at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def colours(image: Image.Image) -> Channels:
    """Whether a file holds grey values or colours, by its header."""
    return "grey" if image.mode.startswith("I;") or image.mode in GREY else "rgb"


def decode(image: Image.Image, name: str, channels: Channels, *, bits: int | None = None) -> Image.Image:
    """The image as mode L or RGB.

    16-bit values give the high 8 of their bits, transparent parts are seen on white, palettes and CMYK
    become colours, colours become grey by ITU-R 601. Tags that turn an image (EXIF) are followed in TIFF
    alone, as in torchvision; `turned` tells of the others.

    Raises:
        InputError: a damaged file, one of several pages, or values without a known range.
    """
    with _reading(name):
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's previews
        if pages == 1:
            _check_sums(image)
            image.load()
    if pages > 1:
        raise InputError(
            f"{name} holds {pages} pages or frames, and one image a file is needed: save each as a file"
        )
    if image.mode.startswith(("I", "F")):
        image = _high_byte(image, name, bits)
    with _reading(name):
        if image.has_transparency_data:
            seen = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), seen).convert("RGB")
        return image.convert("L" if channels == "grey" else "RGB")


def is_turned(image: Image.Image) -> bool:
    """Whether a decoded image's tag says that it is to be turned or mirrored before it is seen."""
    with suppress(*BROKEN):  # a damaged tag says nothing
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    return False


def prepare(image: Image.Image, by: Preparation) -> NDArray[np.uint8]:
    """The pixels (c, h, w) of an image of mode L or RGB, cut and resized.

    >>> prepare(Image.new("L", (6, 4), 9), Preparation(size=2)).tolist()
    [[[9, 9], [9, 9]]]
    """
    if by.crop is not None:
        image = centre(image, by.crop)
    if by.size is not None:
        short = by.resize or by.size
        width, height = image.size
        least = min(width, height)
        sides = (int(short * width / least), int(short * height / least))
        if by.squash:
            sides = (short, short)
        if sides[0] * sides[1] > LARGEST:
            raise InputError(
                f"an image of {width} x {height} pixels is too narrow to be resized: {sides[0]} x "
                f"{sides[1]} pixels, and at most {LARGEST:,} are made; cut it first, e.g. crop={least}"
            )
        way = WAYS[by.interpolation or "bilinear"]
        image = centre(image.resize(sides, way) if sides != image.size else image, by.size)
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
        f"{name} has {pixels} pixels, and at most {LARGEST:,} are decoded: scale it down, or leave such "
        "files out with skip_damaged=True (--read.skip-damaged)"
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


def _check_sums(image: Image.Image) -> None:
    """Hold a PNG's chunks against their checksums: Pillow reads the pixels past them."""
    if not isinstance(image, PngImageFile) or image.fp is None:
        return
    file, place = image.fp, image.fp.tell()
    file.seek(8)
    kind = b""
    while kind != b"IEND" and (head := file.read(8)):
        length, kind = struct.unpack(">I4s", head)
        found = zlib.crc32(file.read(length), zlib.crc32(kind))
        if file.read(4) != found.to_bytes(4, "big"):
            raise ValueError(f"the checksum of its chunk {kind!r} is wrong")
    if kind != b"IEND":
        raise ValueError("it is cut short")
    file.seek(place)


def _high_byte(image: Image.Image, name: str, bits: int | None) -> Image.Image:
    values = np.asarray(image)
    white = (1 << (bits or 16)) - 1
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > white:
        raise InputError(
            f"{name} holds values beyond {bits or 16} bits or fractions (mode {image.mode}), whose black "
            "and white are not known: save it with 8 or 16 bits"
        )
    return Image.fromarray(high_byte(values, bits, name))


def high_byte(values: NDArray[Any], bits: int | None, name: str) -> NDArray[np.uint8]:
    """The high 8 of so many bits of whole numbers.

    Raises:
        InputError: no `bits` are named, and of 16 the high ones are all empty.
    """
    brightest = int(values.max(initial=0))
    if bits is None and 0 < brightest < DARK:
        raise InputError(
            f"the brightest value of {name} is {brightest} of 65,535, so all of it would be nearly black: "
            f"say how many bits are used, bits={max(8, brightest.bit_length())} (--read.bits), or 16"
        )
    return (values >> ((bits or 16) - 8)).astype(np.uint8)

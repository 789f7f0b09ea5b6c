"""Images that are decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from poise.checks import InputError
from poise.data.decoding import colours, decode, is_turned, prepare, quiet
from poise.preparation import Channels, Preparation

NAMED = 12  # damaged files, at most, in a warning
ALONE = 2**24  # pixels of an image that is decoded while no other large one is
LARGE = Lock()
THREADS = min(8, os.cpu_count() or 1)
Pixels: TypeAlias = UInt8[Tensor, "n c h w"]


class ImageSource(Protocol):
    """Where undecoded images come from; any thread may ask."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What to call image i in a message."""

    def image(self, i: int) -> Image.Image:
        """Image i, its header read."""

    def digest(self, i: int) -> bytes:
        """A SHA-256 of image i as it is stored."""

    def alike(self) -> bool:
        """Whether all images are known to have the first one's size and colours."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images (n, c, h, w) of a source, decoded and prepared batch by batch.

    Decoding runs in threads, one batch ahead of the one in use: at most two are in memory.
    """

    source: ImageSource
    index: Int[Tensor, " n"]  # which images of the source, in order
    preparation: Preparation  # with its channels named
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, chosen: Tensor) -> Pictures:
        return replace(self, index=self.index[chosen])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, channels, height, width)."""
        return len(self), *self.image_shape

    def read(self, chosen: Int[Tensor, " m"]) -> Pixels:
        """The images with these places, decoded.

        Raises:
            InputError: a damaged file, or one whose size the others do not have.
        """
        return next(self.stream([chosen]))

    def stream(self, parts: Sequence[Int[Tensor, " m"]]) -> Iterator[Pixels]:
        """`read` of each part, while the next is decoded already."""
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        tagged = list[str]()
        try:
            for part in parts:
                ahead.append([pool.submit(self._pixels, i, tagged) for i in self.index[part].tolist()])
                if len(ahead) == 2:
                    yield self._joined(ahead.popleft())
            while ahead:
                yield self._joined(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            _tell_of(tagged)

    def digests(self) -> Iterator[bytes]:
        """What the pixels depend on: the preparation, then every image as it is stored."""
        yield self.preparation.recipe.encode()
        yield from self.marks()

    def marks(self) -> Iterator[bytes]:
        """A SHA-256 of every image as it is stored."""
        with ThreadPoolExecutor(THREADS) as pool:
            for some in torch.split(self.index, 1024):
                yield from pool.map(self.source.digest, some.tolist())

    def _joined(self, images: list[Future[NDArray[np.uint8]]]) -> Pixels:
        block = torch.empty(len(images), *self.image_shape, dtype=torch.uint8)
        for place, image in enumerate(images):
            block[place] = torch.from_numpy(image.result())
        return block

    def _pixels(self, i: int, tagged: list[str]) -> NDArray[np.uint8]:
        name, channels = self.source.name(i), self.preparation.channels
        assert channels is not None
        with self.source.image(i) as image, LARGE if prod(image.size) > ALONE else nullcontext():
            seen = decode(image, name, channels, bits=self.preparation.bits)
            if is_turned(image):
                tagged.append(name)
            try:
                pixels = prepare(seen, self.preparation).copy()
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        if pixels.shape != self.image_shape:
            raise unequal(name, pixels.shape[1:], "the others", self.image_shape[1:])
        return pixels


def pictures(source: ImageSource, chosen: Tensor, preparation: Preparation) -> Pictures:
    """Those images of the source, by their headers of one shape after the preparation.

    Raises:
        InputError: unequal sizes and no size to bring them to, or a file that is no image.
    """
    if preparation.resize is not None and preparation.size is None:
        raise InputError(f"resize={preparation.resize} needs a size, which is cut from the centre")
    side = preparation.size or preparation.crop
    channels, size = preparation.channels, (side, side) if side else None
    if channels is None or size is None:
        with quiet():
            seen = list(_headers(source, chosen[:1] if source.alike() else chosen))
        first_name, first_size, _ = seen[0]
        channels = channels or ("grey" if all(kind == "grey" for *_, kind in seen) else "rgb")
        for name, other, _ in seen:
            if size is None and other != first_size:
                raise unequal(name, other, first_name, first_size)
        size = size or first_size
    return Pictures(
        source, chosen, replace(preparation, channels=channels), (3 if channels == "rgb" else 1, *size)
    )


def readable(source: ImageSource, chosen: Tensor, bits: int | None = None) -> Tensor:
    """Which of the images can be decoded, found by decoding them all: a mask. Warns of the others."""

    def can_decode(i: int) -> bool:
        try:
            with source.image(i) as image, LARGE if prod(image.size) > ALONE else nullcontext():
                decode(image, source.name(i), "rgb", bits=bits)
        except InputError:
            return False
        return True

    with quiet(), ThreadPoolExecutor(THREADS) as pool:
        fine = torch.tensor(list(pool.map(can_decode, chosen.tolist())), dtype=torch.bool)
    damaged = [source.name(i) for i in chosen[~fine].tolist()]
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        warnings.warn(
            f"left out {len(damaged)} of {len(chosen)} images that cannot be read: "
            f"{', '.join(damaged[:NAMED])}{more}",
            stacklevel=2,
        )
    return fine


def _tell_of(tagged: list[str]) -> None:
    if tagged:
        warnings.warn(
            f"{len(tagged)} images have a tag (EXIF) that turns them, {min(tagged)} for one: they are read "
            "as stored, as torchvision does; save them turned if your model sees them so",
            stacklevel=3,
        )


def sha256_of(data: Any) -> bytes:
    """A SHA-256 of bytes, or of an array's bytes."""
    return hashlib.sha256(data).digest()


def unequal(name: str, size: Sequence[int], other: str, other_size: Sequence[int]) -> InputError:
    """The refusal of images that cannot lie in one batch."""
    (h, w), (other_h, other_w) = size, other_size
    return InputError(
        f"images of different sizes: {name} has {w} x {h} pixels, {other} {other_w} x {other_h}: bring "
        "them to one size, e.g. Preparation(size=224) (--read.size 224)"
    )


def _headers(source: ImageSource, chosen: Tensor) -> Iterator[tuple[str, tuple[int, int], Channels]]:
    """The name, (height, width) and colours of each image."""

    def header(i: int) -> tuple[str, tuple[int, int], Channels]:
        with source.image(i) as image:
            return source.name(i), (image.height, image.width), colours(image)

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(header, chosen.tolist())

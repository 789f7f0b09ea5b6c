"""Image sets: in memory, or decoded from files batch by batch; their classes and preparation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from poise.checks import InputError, check_count, check_labels, check_text, name_some
from poise.data.pictures import Pictures, pictures, sha256_of
from poise.preparation import Preparation
from poise.shapes import Images, Labels, bytes_of

Split: TypeAlias = Literal["train", "test", "val"]
HASHED = 1024  # images hashed at a time, so that mapped files need not fit into memory


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images kept as integers; iterating gives float32 batches (x in [0, 1], y) in a fixed order.

    >>> data = ImageSet("two", torch.tensor([[[[0, 255]]]] * 2, dtype=torch.uint8),
    ...                 torch.tensor([0, 1]), ("dark", "bright"))
    >>> [(x.max().item(), y.tolist()) for x, y in data]
    [(1.0, [0, 1])]
    """

    name: str
    pixels: UInt8[Tensor, "n c h w"] | Pictures
    y: Labels
    classes: tuple[str, ...]
    scale: int = 255  # the integer that stands for 1.0
    batch_size: int = 128
    device: torch.device | None = None  # where batches lie; None is the CPU
    origin: Pictures | None = None  # what the pixels in memory were decoded from
    asked: Mapping[str, Any] | None = None  # of `poise.data.load`, to have the same images again

    def __post_init__(self) -> None:
        check_labels(self.y, len(self.pixels))
        for text in (self.name, *self.classes):
            check_text(text, "the data set" if text is self.name else f"a class of {self.name}")
        if twice := [name for name, n in Counter(self.classes).items() if n > 1]:
            raise InputError(f"{self.name} names two classes {twice[0]!r}: give each a name of its own")
        if len(self.y) and not (int(self.y.min()) >= 0 and int(self.y.max()) < len(self.classes)):
            raise InputError(
                f"the labels of {self.name} must lie in [0, {len(self.classes) - 1}], one for each of its "
                f"classes, got [{int(self.y.min())}, {int(self.y.max())}]"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        return self.batches(torch.arange(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, c, h, w = self.pixels.shape
        return c, h, w

    @property
    def preparation(self) -> Preparation | None:
        """How the images were brought to their shape; None for pixels that came as they are."""
        pixels = self.origin or self.pixels
        return pixels.preparation if isinstance(pixels, Pictures) else None

    @property
    def told(self) -> dict[str, Any]:
        """What `poise.data.load` was asked, with the preparation in force: these images again, as JSON."""
        asked = dict(self.asked or {})
        if self.preparation is not None:
            asked["read"] = self.preparation.told
        return asked

    def batches(self, order: Tensor) -> Iterator[tuple[Images, Labels]]:
        """Batches of the images with these indices, in their order."""
        parts = torch.split(order, self.batch_size)
        for chosen, block in zip(parts, self._blocks(parts), strict=True):
            if self.device is not None and block.device != self.device:
                block = block.pin_memory() if self.device.type == "cuda" else block
                block = block.to(self.device, non_blocking=True)  # as integers, a quarter of the bytes
            yield block.float().div_(self.scale), self.y[chosen]

    def batched(self, batch_size: int) -> ImageSet:
        """The same images in batches of that size."""
        check_count("batch_size", batch_size, 1)
        return replace(self, batch_size=batch_size)

    def take(self, chosen: Tensor) -> ImageSet:
        """The images with these indices, or where this mask is true; e.g. one process's share.

        >>> data = ImageSet("three", torch.zeros(3, 1, 1, 1, dtype=torch.uint8),
        ...                 torch.tensor([0, 1, 1]), ("a", "b"))
        >>> data.take(torch.arange(0, 3, 2)).y.tolist()
        [0, 1]
        """
        origin = None if self.origin is None else self.origin[chosen]
        return replace(self, pixels=self.pixels[chosen], y=self.y[chosen], origin=origin)

    def relabelled(self, order: Sequence[int], classes: Sequence[str]) -> ImageSet:
        """The same images, label i being order[i] of these classes now; see `poise.labels`.

        >>> data = ImageSet("two", torch.zeros(2, 1, 1, 1, dtype=torch.uint8),
        ...                 torch.tensor([0, 1]), ("a", "b"))
        >>> data.relabelled((2, 0), "bca").y.tolist()
        [2, 0]
        """
        return replace(self, y=torch.tensor(order, dtype=torch.int64)[self.y], classes=tuple(classes))

    def subset(self, images: int | None, *, seed: int = 0) -> ImageSet:
        """So many images, each class in its share to within one image, in their old order."""
        return self if images is None or images == len(self) else self.take(self._draw(images, seed))

    def divide(self, images: int, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """`subset(images)` and all the others: to fit something on images that are not reported on.

        >>> data = ImageSet("six", torch.zeros(6, 1, 1, 1, dtype=torch.uint8),
        ...                 torch.tensor([0, 0, 0, 0, 1, 1]), ("a", "b"))
        >>> [part.y.tolist() for part in data.divide(3)]
        [[0, 0, 1], [0, 0, 1]]
        """
        chosen = self._draw(images, seed)
        return self.take(chosen), self.take(~chosen)

    def on(self, device: torch.device | str, *, room: int = 2**30) -> ImageSet:
        """The same images with their batches on that device; labels stay on the CPU.

        If all of them, decoded, take at most `room` bytes, they are moved there once; otherwise each
        batch is sent as it is made. The fingerprint stays the same.
        """
        place = torch.empty(0, device=device).device  # with the number of a GPU
        _, c, h, w = self.pixels.shape
        if len(self) * c * h * w > room:
            return replace(self, device=place)
        if isinstance(self.pixels, Tensor):
            return replace(self, pixels=self.pixels.to(place), device=place)
        parts = torch.split(torch.arange(len(self)), self.batch_size)
        decoded = torch.empty(self.pixels.shape, dtype=torch.uint8, device=place)
        for chosen, block in zip(parts, self.pixels.stream(parts), strict=True):
            decoded[chosen[0] : chosen[-1] + 1] = block
        return replace(self, pixels=decoded, device=place, origin=self.pixels)

    def fingerprint(self) -> str:
        """A SHA-256 of what exactly was looked at: pixels and labels, in order.

        Of images in files: the files' bytes, the preparation, and the labels.
        """
        pixels = self.pixels if self.origin is None else self.origin
        digest = hashlib.sha256(str((tuple(pixels.shape), self.scale)).encode())
        if isinstance(pixels, Pictures):
            for part in pixels.digests():
                digest.update(part)
        else:
            for block in torch.split(pixels, HASHED):
                digest.update(bytes_of(block))
        digest.update(bytes_of(self.y))
        return digest.hexdigest()

    def marks(self) -> Tensor:
        """64 bits of each image's SHA-256 (n,), as it is stored: the same image anywhere has the same."""
        pixels = self.pixels if self.origin is None else self.origin
        if isinstance(pixels, Pictures):
            found = list(pixels.marks())
        else:
            blocks = torch.split(pixels, HASHED)
            found = [sha256_of(image.numpy()) for block in blocks for image in block.cpu().contiguous()]
        return torch.tensor([int.from_bytes(mark[:8], "big", signed=True) for mark in found])

    def _blocks(self, parts: tuple[Tensor, ...]) -> Iterator[UInt8[Tensor, "n c h w"]]:
        if isinstance(self.pixels, Pictures):
            return self.pixels.stream(parts)
        return map(self.pixels.__getitem__, parts)

    def _draw(self, images: int, seed: int) -> Tensor:
        """A mask of so many images, each class in its share."""
        check_count("images", images, 1)
        if images > len(self):
            raise InputError(f"images must be at most {len(self)}, all that {self.name} has, got {images}")
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self), generator=generator)
        share = torch.bincount(self.y).double() * images / len(self)
        quota = share.floor().long()
        largest = (quota - share).argsort(stable=True)  # the largest remainders first
        quota[largest[: images - int(quota.sum())]] += 1
        members = [shuffled[self.y[shuffled] == label][:n] for label, n in enumerate(quota.tolist())]
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[torch.cat(members)] = True
        return chosen


def keep(classes: Sequence[str], drop: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes but those to be dropped; at least two are left."""
    if unknown := [name for name in drop if name not in classes]:
        raise InputError(
            f"drop names {name_some(unknown)}, and {where} has the classes {name_some(classes)}"
        )
    kept = tuple(name for name in classes if name not in drop)
    if len(kept) < 2:
        raise InputError(
            f"{where} has {_count_classes(kept)}, and a classifier needs at least two: name the folder "
            "that holds a folder of images a class"
        )
    return kept


def check_filled(y: torch.Tensor, classes: Sequence[str], where: str, *, allow_empty: bool) -> None:
    """Refuse classes without images, unless they are allowed and some class has images."""
    counts = torch.bincount(y, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty and (not allow_empty or len(empty) == len(classes)):
        raise InputError(
            f"{where} has no images of {_count_classes(empty)}: add some, leave the class out with "
            "drop (--read.drop), or keep its place with allow_empty=True (--read.allow-empty)"
        )


def _count_classes(names: Sequence[str]) -> str:
    kind = "class" if len(names) == 1 else "classes"
    return f"{len(names) or 'no'} {kind}" + (f" ({name_some(names)})" if names else "")


@dataclass(frozen=True, eq=False)
class Held:
    """Grey or colour images in memory, as a source."""

    pixels: UInt8[Tensor, "n c h w"]
    title: str

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        """The image's number in its set."""
        return f"image {i} of {self.title}"

    def image(self, i: int) -> Image.Image:
        """The image, as Pillow's."""
        pixels = self.pixels[i].permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def digest(self, i: int) -> bytes:
        """A SHA-256 of the pixels."""
        return sha256_of(self.pixels[i].contiguous().numpy())

    def alike(self) -> bool:
        """Always: they lie in one array."""
        return True


def prepare_images(images: ImageSet, preparation: Preparation) -> ImageSet:
    """The image set without the classes to be dropped, its images prepared batch by batch.

    Levels other than 256 are brought to 256 first, if pixels are touched at all.

    Raises:
        InputError: a class to be dropped that is not there, or a preparation of images that have
            neither one channel nor three.
    """
    if preparation.drop:
        images = _without(images, preparation.drop)
    if not preparation.touches_pixels:
        return images
    assert isinstance(images.pixels, Tensor)
    if images.shape[0] not in (1, 3):
        raise InputError(
            f"{images.name} has {images.shape[0]} channels, and size, crop and channels are for grey or "
            "colour images: leave them out"
        )
    pixels = images.pixels
    if images.scale != 255:
        pixels = pixels.double().mul_(255 / images.scale).round_().to(torch.uint8)
    source = Held(pixels, images.name)
    return replace(images, pixels=pictures(source, torch.arange(len(images)), preparation), scale=255)


def _without(images: ImageSet, drop: tuple[str, ...]) -> ImageSet:
    kept = keep(images.classes, drop, images.name)
    number = torch.tensor([kept.index(name) if name in kept else -1 for name in images.classes])
    y = number[images.y]
    part = images.take(y >= 0)
    return replace(part, y=y[y >= 0], classes=kept)

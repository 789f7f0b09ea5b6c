"""Image sets that fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import UInt8
from torch import Tensor

from poise.checks import InputError, check_count, check_labels
from poise.shapes import Images, Labels

Split: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images kept as integers; iterating gives float32 batches (x in [0, 1], y) in a fixed order.

    >>> data = ImageSet("two", torch.tensor([[[[0, 255]]]] * 2, dtype=torch.uint8),
    ...                 torch.tensor([0, 1]), ("dark", "bright"))
    >>> [(x.max().item(), y.tolist()) for x, y in data]
    [(1.0, [0, 1])]
    """

    name: str
    pixels: UInt8[Tensor, "n c h w"]
    y: Labels
    classes: tuple[str, ...]
    scale: int = 255  # the integer that stands for 1.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_labels(self.y, len(self.pixels))
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

    def batches(self, order: Tensor) -> Iterator[tuple[Images, Labels]]:
        """Batches of the images with these indices, in their order."""
        for chosen in torch.split(order, self.batch_size):
            yield self.pixels[chosen].float().div_(self.scale), self.y[chosen]

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Images, Labels]]:
        """Batches in an order that the seed and the epoch alone decide."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return self.batches(torch.randperm(len(self), generator=generator))

    def batched(self, batch_size: int) -> ImageSet:
        """The same images in batches of that size."""
        check_count("batch_size", batch_size, 1)
        return replace(self, batch_size=batch_size)

    def subset(self, images: int | None, *, seed: int = 0) -> ImageSet:
        """So many images, each class in its share to within one image, in their old order."""
        return self if images is None or images == len(self) else self.divide(images, seed=seed)[0]

    def divide(self, images: int, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """`subset(images)` and all the others: to fit something on images that are not reported on.

        >>> data = ImageSet("six", torch.zeros(6, 1, 1, 1, dtype=torch.uint8),
        ...                 torch.tensor([0, 0, 0, 0, 1, 1]), ("a", "b"))
        >>> [part.y.tolist() for part in data.divide(3)]
        [[0, 0, 1], [0, 0, 1]]
        """
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
        first, rest = (
            replace(self, pixels=self.pixels[part], y=self.y[part]) for part in (chosen, ~chosen)
        )
        return first, rest

    def fingerprint(self) -> str:
        """A SHA-256 of the pixels and labels, in order: what exactly was looked at."""
        digest = hashlib.sha256(str((tuple(self.pixels.shape), self.scale)).encode())
        for values in (self.pixels, self.y):
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()

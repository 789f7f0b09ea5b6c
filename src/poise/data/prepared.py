"""The preparation of images that are in memory already."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from poise.checks import InputError
from poise.data.arrays import ImageSet
from poise.data.folders import keep
from poise.data.pictures import hashed, pictures
from poise.preparation import Preparation


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
        return hashed(self.pixels[i].contiguous().numpy())

    def alike(self) -> bool:
        """Always: they lie in one array."""
        return True


def prepared(images: ImageSet, preparation: Preparation) -> ImageSet:
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
            f"{images.name} has {images.shape[0]} channels, and size, crop and channels are for grey "
            "or colour "
            "images: leave them out"
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

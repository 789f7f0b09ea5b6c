"""Data of a user's own code: FILE.py:FUNCTION, or what a package offers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from poise.checks import InputError, check_images
from poise.data.arrays import ImageSet, Split, prepare_images
from poise.data.pictures import Pictures
from poise.modes import pair
from poise.naming import take_known
from poise.preparation import AS_IT_IS, Preparation
from poise.shapes import Images, Labels
from poise.user_code import bare_name, named_in


def own(
    name: str,
    split: Split = "test",
    *,
    root: str | Path = "data",
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """What FUNCTION(split=) of FILE.py or of a package gives: an image set, or batches (x in [0, 1], y).

    Its code is run: name only code that you trust. It gets root, download and preparation too where it
    takes them; what it does not take, preparation, is done to what it gives.

    Raises:
        InputError: no such function, or what it gives are no images.
    """
    with named_in(name, "function {name} (split=) -> batches (x, y) or an ImageSet", "data") as make:
        options = take_known(make, split=split, root=root, download=download, preparation=preparation)
        if "split" not in options:
            raise InputError(f"{name} does not take split: write def {name.rpartition(':')[2]}(*, split)")
        found = make(**options)
        images = found if isinstance(found, ImageSet) else from_batches(found, bare_name(name, "data"))
    if "preparation" in options:
        return images
    if isinstance(images.pixels, Pictures) and (preparation.touches_pixels or preparation.drop):
        raise InputError(
            f"{name} reads files itself: let it take preparation= and hand it to poise.data.load"
        )
    return prepare_images(images, preparation)


def from_batches(batches: Iterable[tuple[Images, Labels]], name: str) -> ImageSet:
    """The images and labels of batches (x in [0, 1], y, ...), kept as they are, in memory.

    Their classes are called as `batches.classes` has them, or by their numbers.

    Raises:
        InputError: no batches, or ones without images and labels.
    """
    parts = [pair(batch) for batch in batches]
    if not parts:
        raise InputError(f"there are no images in {name}: the batches are empty")
    for x, _ in parts:
        check_images(x)
    x, y = (torch.cat([part[place].detach().cpu() for part in parts]) for place in (0, 1))
    numbers = [str(label) for label in range(int(y.max()) + 1)]
    classes = tuple(getattr(batches, "classes", None) or numbers)
    return ImageSet(name, x, y.long(), classes, scale=1, batch_size=len(parts[0][1]))

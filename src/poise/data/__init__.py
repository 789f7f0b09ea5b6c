"""Data sets: (x, y) batches of images in [0, 1], with the names of their classes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from poise.checks import check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.digits import digits
from poise.data.mnist import mnist
from poise.naming import lookup

DATASETS: Mapping[str, Callable[..., ImageSet]] = {  # (split, root=, download=) -> an image set
    "digits": digits,
    "mnist": mnist,
}


def load(
    name: str,
    *,
    split: Literal["train", "test"] = "test",
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    root: str | Path = "data",
    download: bool = False,
) -> ImageSet:
    """The data set of that name; iterating it gives (x, y) batches.

    Args:
        name: one of DATASETS.
        split: "train" or "test".
        images: take so many, the same share of every class, drawn by `seed`; None takes all.
        seed: of the draw.
        batch_size: images a batch.
        root: the folder that torchvision's data sets lie in.
        download: fetch a data set that is not there.

    Raises:
        InputError: an unknown name or split, a missing folder, more images than there are.
    """
    check_choice("split", split, ("train", "test"))
    whole = lookup(DATASETS, name, "data set")(split, root=Path(root), download=download)
    return whole.subset(images, seed=seed).batched(batch_size)


__all__ = ["DATASETS", "ImageSet", "Split", "digits", "load", "mnist"]

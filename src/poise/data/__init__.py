"""Data sets: (x, y) batches of images in [0, 1], with the names of their classes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise.checks import check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.cifar import cifar10, cifar100
from poise.data.digits import digits
from poise.data.folders import SPLITS, folder
from poise.data.hugging_face import hugging_face
from poise.data.imagenet import imagenet
from poise.data.mnist import mnist
from poise.data.npz import npz
from poise.data.pictures import Pictures
from poise.data.transfer import busi, chest, mstar
from poise.naming import lookup
from poise.preparation import AS_IT_IS, Preparation

DATASETS: Mapping[str, Callable[..., ImageSet]] = {  # (split, root=, download=, preparation=)
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "chest": chest,
    "busi": busi,
    "mstar": mstar,
}
PREFIXES: Mapping[str, Callable[..., ImageSet]] = {  # (what follows the colon, split, ...)
    "folder": folder,
    "npz": npz,
    "hf": hugging_face,
}


def load(
    name: str,
    *,
    split: Split = "test",
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    root: str | Path = "data",
    download: bool = False,
    preparation: Preparation | None = None,
) -> ImageSet:
    """The data set of that name; iterating it gives (x, y) batches.

    Args:
        name: one of DATASETS, or the user's own data: folder:PATH, npz:FILE, hf:NAME.
        split: "train", "test" or "val", where there is such a split.
        images: take so many, the same share of every class, drawn by `seed`; None takes all.
        seed: of the draw.
        batch_size: images a batch.
        root: the folder that the data sets with a name lie in.
        download: fetch a data set that is not there, where that is possible.
        preparation: sizes, colours and what is left out; what it leaves at its default is as the
            data set has it.

    Raises:
        InputError: an unknown name or split, a missing folder, damaged images, more images than
            there are.
    """
    known = name if isinstance(name, str) else ""
    kind, colon, rest = known.partition(":")
    preparation = preparation or AS_IT_IS
    options = {"root": Path(root), "download": download, "preparation": preparation}
    if colon:
        whole = lookup(PREFIXES, kind, "kind of data")(rest, _checked(split, SPLITS), **options)
    else:
        whole = lookup(DATASETS, name, "data set")(split, **options)
    asked: dict[str, Any] = {
        "name": name,
        "split": split,
        "images": images,
        "seed": seed,
        "root": str(root),
    }
    asked["read"] = preparation.told
    return replace(whole.subset(images, seed=seed).batched(batch_size), asked=asked)


def _checked(split: Split, splits: tuple[str, ...]) -> Split:
    check_choice("split", split, splits)
    return split


__all__ = [
    "DATASETS",
    "PREFIXES",
    "ImageSet",
    "Pictures",
    "Preparation",
    "Split",
    "busi",
    "chest",
    "cifar10",
    "cifar100",
    "digits",
    "folder",
    "hugging_face",
    "imagenet",
    "load",
    "mnist",
    "mstar",
    "npz",
]

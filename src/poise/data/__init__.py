"""Data sets: (x, y) batches of images in [0, 1], with the names of their classes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise.checks import InputError, check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.folders import SPLITS, at_home, folder
from poise.data.hugging_face import hugging_face
from poise.data.npz import npz
from poise.data.own import own
from poise.data.pictures import Pictures
from poise.data.published import busi, chest, cifar10, cifar100, digits, imagenet, mnist, mstar
from poise.naming import lookup
from poise.preparation import AS_IT_IS, Preparation
from poise.user_code import is_own

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
    name: str | Path,
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
        name: one of DATASETS, or the user's own data: folder:PATH, npz:FILE, hf:NAME. A path alone is
            such a folder or file. FILE.py:FUNCTION, or a name that a package offers (`poise.data`), is
            code that is run, called with split=, and gives an image set or batches (x in [0, 1], y).
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
    code = is_own(name, "data", (*DATASETS, *PREFIXES))
    if isinstance(name, str | Path):
        name = str(name) if code else _add_prefix(str(name))
    kind, colon, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    preparation = preparation or AS_IT_IS
    options: dict[str, Any] = {
        "root": at_home(str(root)),
        "download": download,
        "preparation": preparation,
    }
    if code:
        whole = own(name, split, **options)
    elif colon:
        whole = lookup(PREFIXES, kind, "kind of data")(rest, _check_split(split, SPLITS), **options)
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


def _add_prefix(name: str) -> str:
    """The name of data; a path that is there, or can be nothing else, with the prefix of its kind.

    Raises:
        InputError: a path at which there is nothing, or no data.
    """
    path = at_home(name)
    if name.partition(":")[0] in PREFIXES or name.replace("-", "_").lower() in DATASETS:
        return name
    if path.is_dir():
        return f"folder:{path}"
    file, _, column = str(path).rpartition("#")
    if path.suffix == ".npz" or (file.endswith(".npz") and column.isdigit()):
        return f"npz:{path}"
    if path.exists() or {*name} & {"/", "\\"} or name.startswith("~"):
        raise InputError(
            f"{name!r} is {'no folder and no .npz file' if path.exists() else 'not there'}: name data as "
            "folder:PATH, with a folder of images a class, or npz:FILE"
        )
    return name


def _check_split(split: Split, splits: tuple[str, ...]) -> Split:
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

"""Published data sets, each by its name: (split, root=, download=, preparation=) -> ImageSet."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poise.checks import BROKEN, InputError, check_choice
from poise.data.arrays import ImageSet, Split, prepare_images
from poise.data.folders import folders_in, read_folder
from poise.preparation import AS_IT_IS, Preparation


def digits(
    split: Split,
    *,
    root: Path | None = None,
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """1,437 training and 360 test images of 10 classes, 8×8, 17 grey levels (Alpaydin & Kaynak 1998).

    The split is ours, stratified, seed 0: the source's package has none. `root` and `download`
    play no part.

    >>> len(digits("train")), len(digits("test"))
    (1437, 360)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_choice("split", split, ("train", "test"))
    bunch = load_digits()
    parts = train_test_split(
        bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target
    )
    scans, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    pixels = torch.from_numpy(scans).to(torch.uint8)[:, None]
    names = tuple(str(digit) for digit in range(10))
    images = ImageSet("digits", pixels, torch.from_numpy(labels).long(), names, scale=16)
    return prepare_images(images, preparation)


def mnist(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """60,000 training or 10,000 test images of 10 digits, 28×28 grey (LeCun 1998), from ROOT/MNIST/raw.

    Raises:
        InputError: the files are not there and `download` is false, or they are damaged.
    """
    from torchvision.datasets import MNIST

    check_choice("split", split, ("train", "test"))
    raw = str(Path(root) / "MNIST" / "raw")
    try:
        source = MNIST(root=str(root), train=split == "train", download=download)
    except BROKEN as error:
        if "not found" in str(error) and not download:
            raise InputError(
                f"MNIST is not in {raw!r}: fetch it with `poise download mnist --root {root}`, or name its "
                "folder with --root"
            ) from error
        if download:
            raise
        raise _damage(raw, str(error) or type(error).__name__) from error
    if source.data.shape[1:] != (28, 28) or source.targets.shape != (len(source.data),):
        raise _damage(raw, f"{tuple(source.data.shape)} pixels and {tuple(source.targets.shape)} labels")
    names = tuple(str(digit) for digit in range(10))
    return prepare_images(
        ImageSet("mnist", source.data[:, None], source.targets.long(), names), preparation
    )


def _damage(raw: str, why: str) -> InputError:
    return InputError(f"the files of MNIST in {raw!r} are damaged ({why}): remove and fetch them again")


def cifar10(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """50,000 training or 10,000 test photographs of 10 classes, 32×32 RGB (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "cifar10", split, root, download, preparation)


def cifar100(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """50,000 training or 10,000 test photographs of 100 classes, 32×32 RGB (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "cifar100", split, root, download, preparation)


def _cifar(
    kind: Any, name: str, split: Split, root: Path, download: bool, preparation: Preparation
) -> ImageSet:
    check_choice("split", split, ("train", "test"))
    try:
        source = kind(root=str(root), train=split == "train", download=download)
    except RuntimeError as error:
        if download:
            raise
        raise InputError(
            f"{name} is not in {str(Path(root) / kind.base_folder)!r}: fetch it with "
            f"`poise download {name} --root {root}`, or name its folder with --root"
        ) from error
    pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return prepare_images(
        ImageSet(name, pixels, torch.tensor(source.targets), tuple(source.classes)), preparation
    )


CENTRE_224 = Preparation(size=224, resize=256, channels="rgb")  # the customary test images


def imagenet(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """1,281,167 training or 50,000 validation photographs of 1,000 classes (Russakovsky et al. 2015).

    From ROOT/imagenet/{train,val}/WNID, torchvision's layout; "test" is the validation images. Short
    side to 256, then the centre 224×224, unless the preparation says otherwise.

    Raises:
        InputError: the folders are not there, or are not the 1,000 synsets.
    """
    from torchvision.models import ResNet50_Weights

    check_choice("split", split, ("train", "test", "val"))
    top = Path(root) / "imagenet"
    part = top / ("train" if split == "train" else "val")
    if download or not part.is_dir():
        raise InputError(
            f"ImageNet {'cannot be downloaded' if download else 'is not there'}: get it from image-net.org "
            f"and unpack it into {str(part)!r}, a folder a synset (n01440764 ...), or name its folder with "
            "--root"
        )
    synsets = sorted(folders_in(part))
    titles = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if len(synsets) != len(titles) or not all(re.fullmatch(r"n\d{8}", name) for name in synsets):
        raise InputError(
            f"{str(part)!r} must hold the 1,000 folders of the synsets (n01440764 ...), empty ones too, "
            f"and has {len(synsets)}: labels would be wrong; for a part of ImageNet name folder:{part}"
        )
    images = read_folder(part, part, preparation.over(CENTRE_224), name="imagenet")
    if len(images.classes) < len(titles):  # some were dropped
        titles = [titles[synsets.index(name)] for name in images.classes]
    return replace(images, classes=tuple(f"{a} {b}" for a, b in zip(images.classes, titles, strict=True)))


IMAGENET_LIKE = Preparation(size=224, channels="rgb")
CHEST = ("covid19", "normal", "pneumonia")
BUSI = ("benign", "malignant", "normal")
MSTAR = ("2S1", "BMP2", "BRDM2", "BTR60", "BTR70", "D7", "SLICY", "T62", "T72", "ZIL131", "ZSU_23_4")


def chest(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """Chest X-rays of 3 classes: Covid-19, normal, pneumonia (Cohen et al. 2020; Wang et al. 2017).

    From ROOT/chest/{train,test}/CLASS.
    """
    return _folders("chest", CHEST, split, root, download, preparation.over(IMAGENET_LIKE))


def busi(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """Breast ultrasound images of 2 classes, benign and malignant (Al-Dhabyani et al. 2020).

    From ROOT/busi/{train,test}/CLASS. The class `normal` is dropped: the paper has two classes and
    does not say which; all three are had by folder:ROOT/busi.
    """
    own = Preparation(size=224, channels="rgb", drop=("normal",))
    return _folders("busi", BUSI, split, root, download, preparation.over(own))


def mstar(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """Radar images of 10 vehicles and a test target, 11 classes (Keydel et al. 1996; Chen 2023).

    From ROOT/mstar/{train,test}/CLASS. Of every chip the 64×64 window in the centre is taken first:
    chips differ in size from class to class, and the size would give the class away.
    """
    own = Preparation(size=224, channels="rgb", crop=64)
    return _folders("mstar", MSTAR, split, root, download, preparation.over(own))


def _folders(
    name: str,
    classes: tuple[str, ...],
    split: Split,
    root: Path,
    download: bool,
    preparation: Preparation,
) -> ImageSet:
    check_choice("split", split, ("train", "test"))
    top = Path(root) / name
    if download or not (top / split).is_dir():
        raise InputError(
            f"{name} {'cannot be downloaded' if download else 'is not there'}: put its images into "
            f"{str(top / split / 'CLASS')!r}, CLASS being {', '.join(classes)}, or name another --root"
        )
    return read_folder(top, top / split, preparation, name=name, classes=classes)

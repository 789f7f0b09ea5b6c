"""The paper's three data sets for transfer from ImageNet, a folder a class, 224×224 RGB."""

from __future__ import annotations

from pathlib import Path

from poise.checks import InputError, check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.folders import read
from poise.preparation import AS_IT_IS, Preparation

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
    return read(top, top / split, preparation, name=name, classes=classes)

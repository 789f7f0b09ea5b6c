"""ImageNet (Russakovsky et al. 2015) in a folder a synset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from poise.checks import InputError, check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.folders import folders_in, read
from poise.preparation import AS_IT_IS, Preparation

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
            f"ImageNet {'cannot be downloaded' if download else 'is not there'}: get it from "
            "image-net.org and "
            f"unpack it into {str(part)!r}, a folder a synset (n01440764 ...), or name its folder "
            "with --root"
        )
    synsets = sorted(folders_in(part))
    titles = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if len(synsets) != len(titles) or not all(re.fullmatch(r"n\d{8}", name) for name in synsets):
        raise InputError(
            f"{str(part)!r} must hold the 1,000 folders of the synsets (n01440764 ...), empty ones "
            "too, and has "
            f"{len(synsets)}: labels would be wrong; for a part of ImageNet name folder:{part}"
        )
    images = read(part, part, preparation.over(CENTRE_224), name="imagenet")
    if len(images.classes) < len(titles):  # some were dropped
        titles = [titles[synsets.index(name)] for name in images.classes]
    return replace(images, classes=tuple(f"{a} {b}" for a, b in zip(images.classes, titles, strict=True)))

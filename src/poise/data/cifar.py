"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in torchvision's layout on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from poise.checks import InputError, check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.prepared import prepared
from poise.preparation import AS_IT_IS, Preparation


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
    return prepared(
        ImageSet(name, pixels, torch.tensor(source.targets), tuple(source.classes)), preparation
    )

"""scikit-learn's handwritten digits: 1,797 real 8×8 scans, no network needed."""

from pathlib import Path

import torch

from poise.checks import check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.prepared import prepared
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
    return prepared(images, preparation)

"""MNIST (LeCun 1998) in torchvision's layout on disk."""

from pathlib import Path

from poise.checks import InputError, check_choice
from poise.data.arrays import ImageSet, Split
from poise.data.prepared import prepared
from poise.preparation import AS_IT_IS, Preparation


def mnist(
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """60,000 training or 10,000 test images of 10 digits, 28×28 grey (LeCun 1998), from ROOT/MNIST/raw.

    Raises:
        InputError: the files are not there and `download` is false.
    """
    from torchvision.datasets import MNIST

    check_choice("split", split, ("train", "test"))
    try:
        source = MNIST(root=str(root), train=split == "train", download=download)
    except RuntimeError as error:
        if download:
            raise
        raise InputError(
            f"MNIST is not in {str(Path(root) / 'MNIST' / 'raw')!r}: fetch it with "
            f"`poise download mnist --root {root}`, or name its folder with --root"
        ) from error
    names = tuple(str(digit) for digit in range(10))
    return prepared(ImageSet("mnist", source.data[:, None], source.targets.long(), names), preparation)

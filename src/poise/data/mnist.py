"""MNIST (LeCun 1998) in torchvision's layout on disk."""

from pathlib import Path

from poise.checks import BROKEN, InputError, check_choice
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
        raise _damaged(raw, str(error) or type(error).__name__) from error
    if source.data.shape[1:] != (28, 28) or source.targets.shape != (len(source.data),):
        raise _damaged(raw, f"{tuple(source.data.shape)} pixels and {tuple(source.targets.shape)} labels")
    names = tuple(str(digit) for digit in range(10))
    return prepared(ImageSet("mnist", source.data[:, None], source.targets.long(), names), preparation)


def _damaged(raw: str, why: str) -> InputError:
    return InputError(f"the files of MNIST in {raw!r} are damaged ({why}): remove and fetch them again")

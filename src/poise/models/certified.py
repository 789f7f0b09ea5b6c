"""The small CNN of the literature on certified robustness (Wong & Kolter 2018)."""

from collections import OrderedDict

from torch import nn

from poise.checks import InputError, check_count
from poise.models.normalize import IMAGENET, Normalize, check_colours


def certified_cnn(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The small certified CNN: two strided convolutions, two linear layers (Wong & Kolter 2018).

    The layers have the names in convex_adversarial's CIFAR-10 weights, which fit, and their normalisation.

    >>> sum(p.numel() for p in certified_cnn().parameters())
    214918
    """
    _, height, width = shape
    check_count("classes", classes, 2)
    check_colours("certified-cnn", shape)
    if min(height, width) < 4:
        raise InputError(f"certified-cnn needs images of at least 4×4 pixels, got {height}×{width}")
    layers: list[tuple[str, nn.Module]] = [
        ("normalize", Normalize(IMAGENET[0], (0.225,) * 3)),
        ("0", nn.Conv2d(3, 16, 4, 2, 1)),
        ("1", nn.ReLU()),
        ("2", nn.Conv2d(16, 32, 4, 2, 1)),
        ("3", nn.ReLU()),
        ("4", nn.Flatten()),
        ("5", nn.Linear(32 * (height // 4) * (width // 4), 100)),
        ("6", nn.ReLU()),
        ("7", nn.Linear(100, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))

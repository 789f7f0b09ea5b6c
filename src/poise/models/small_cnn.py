"""A small CNN for 32×32 images: what two cores can train adversarially from scratch."""

from torch import nn

from poise.checks import InputError, check_count
from poise.models.normalize import IMAGENET, Normalize, check_colours


def small_cnn(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The small CNN: five 3×3 convolutions with BatchNorm, global mean, one linear layer (ours).

    About 29 million multiply-adds a 32×32 image. Weights are drawn as He et al. (2015) do.

    >>> sum(p.numel() for p in small_cnn().parameters())
    279466
    """
    check_count("classes", classes, 2)
    check_colours("small-cnn", shape)
    if min(shape[1:]) < 4:
        raise InputError(f"small-cnn needs images of at least 4×4 pixels, got {shape[1]}×{shape[2]}")
    widths, strides = (3, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1)
    layers: list[nn.Module] = [Normalize(*IMAGENET)]
    for before, width, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net

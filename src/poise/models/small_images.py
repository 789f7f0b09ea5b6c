"""torchvision's ResNets for small images: a 3×3 stem of stride 1, and no max-pooling after it.

The usual form for CIFAR: the ImageNet stem would leave an 8×8 map of a 32×32 image. There is no
normalisation: BatchNorm follows the first convolution, and takes what scale the pixels have.
"""

from torch import nn

from poise.checks import InputError, check_count


def resnet18(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """ResNet-18 with the CIFAR stem (He et al. 2016); for the ImageNet form: torchvision/resnet18.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in resnet18().parameters())
    11173962
    """
    return _with_small_stem("resnet18", classes, shape)


def resnet50(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """ResNet-50 with the CIFAR stem (He et al. 2016); for the ImageNet form: torchvision/resnet50."""
    return _with_small_stem("resnet50", classes, shape)


def wide_resnet50_2(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """WideResNet-50-2 with the CIFAR stem (Zagoruyko & Komodakis 2016): inner widths doubled."""
    return _with_small_stem("wide_resnet50_2", classes, shape)


def _with_small_stem(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    from torchvision.models import get_model

    channels, height, width = shape
    check_count("classes", classes, 2)
    if min(height, width) < 8:
        raise InputError(f"{name} needs images of at least 8×8 pixels, got {height}×{width}")
    net: nn.Module = get_model(name, weights=None, num_classes=classes)
    stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.conv1, net.maxpool = stem, nn.Identity()
    return net

"""The ResNets that He et al. (2016, section 4.2) built for CIFAR-10, with shortcut A."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from poise.checks import InputError, check_count
from poise.models.normalize import IMAGENET, Normalize, check_colours


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A).

    The shortcut takes every second pixel where the block halves the image, and pads the new channels
    with zeros, half of them on each side.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2
        self.pad = (width - before) // 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + short)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, so many blocks each: 6 · blocks + 2 layers.

    The names of the layers are those in the public weights for CIFAR-10, whose normalisation it has.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(*IMAGENET)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet20(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> CifarResNet:
    """The CIFAR ResNet-20 of 0.27 million parameters (He et al. 2016, section 4.2, shortcut A).

    >>> sum(p.numel() for p in cifar_resnet20().parameters())
    269722
    """
    return _cifar_resnet(3, classes, shape)


def cifar_resnet56(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> CifarResNet:
    """The CIFAR ResNet-56 of 0.85 million parameters (He et al. 2016, section 4.2, shortcut A).

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in cifar_resnet56().parameters())
    853018
    """
    return _cifar_resnet(9, classes, shape)


def _cifar_resnet(blocks: int, classes: int, shape: tuple[int, int, int]) -> CifarResNet:
    name = f"cifar-resnet{6 * blocks + 2}"
    check_count("classes", classes, 2)
    check_colours(name, shape)
    if min(shape[1:]) < 4:
        raise InputError(f"{name} needs images of at least 4×4 pixels, got {shape[1]}×{shape[2]}")
    return CifarResNet(blocks, classes)


def _stage(blocks: int, before: int, width: int) -> nn.Sequential:
    rest = map(partial(Block, width), [width] * (blocks - 1))
    return nn.Sequential(Block(before, width), *rest)

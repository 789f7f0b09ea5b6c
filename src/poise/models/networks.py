"""Networks that poise builds itself, each a function (classes=, shape=) -> nn.Module."""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from poise.checks import InputError, check_count
from poise.models.normalize import IMAGENET, Normalize, check_colours


def lenet(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """LeNet-5: two convolutions, three linear layers, 61,706 parameters at 28×28 (LeCun et al. 1998).

    Images under 12 pixels (8×8 digits) have the second convolution padded too.

    >>> sum(p.numel() for p in lenet().parameters())
    61706
    """
    channels, height, width = shape
    _check_asked("lenet", classes, shape)
    padding = 2 if min(height, width) < 12 else 0
    high, wide = (((side // 2) + 2 * padding - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * high * wide, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def lenet5_advertorch(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """Advertorch's LeNet-5: two 3×3 convolutions, two linear layers, 648,226 parameters at 28×28.

    The layers have the names of advertorch's LeNet5, whose weights fit (Ding et al. 2019).

    >>> sum(p.numel() for p in lenet5_advertorch().parameters())
    648226
    """
    channels, height, width = shape
    _check_asked("lenet5-advertorch", classes, shape)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 32, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("maxpool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("maxpool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("linear1", nn.Linear(64 * (height // 4) * (width // 4), 200)),
        ("relu3", nn.ReLU()),
        ("linear2", nn.Linear(200, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def small_cnn(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The small CNN: five 3×3 convolutions with BatchNorm, global mean, one linear layer (ours).

    About 29 million multiply-adds a 32×32 image. Weights are drawn as He et al. (2015) do.

    >>> sum(p.numel() for p in small_cnn().parameters())
    279466
    """
    _check_asked("small-cnn", classes, shape, normalised=True)
    widths, strides = (3, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1)
    layers: list[nn.Module] = [Normalize(*IMAGENET)]
    for before, width, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def certified_cnn(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The small certified CNN: two strided convolutions, two linear layers (Wong & Kolter 2018).

    The layers have the names in convex_adversarial's CIFAR-10 weights, which fit, and their normalisation.

    >>> sum(p.numel() for p in certified_cnn().parameters())
    214918
    """
    _, height, width = shape
    _check_asked("certified-cnn", classes, shape, normalised=True)
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
    _check_asked(f"cifar-resnet{6 * blocks + 2}", classes, shape, normalised=True)
    return CifarResNet(blocks, classes)


def _stage(blocks: int, before: int, width: int) -> nn.Sequential:
    rest = map(partial(Block, width), [width] * (blocks - 1))
    return nn.Sequential(Block(before, width), *rest)


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

    _check_asked(name, classes, shape, least=8)
    net: nn.Module = get_model(name, weights=None, num_classes=classes)
    stem = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.conv1, net.maxpool = stem, nn.Identity()
    return net


def _check_asked(
    name: str, classes: int, shape: tuple[int, int, int], *, least: int = 4, normalised: bool = False
) -> None:
    """Refuse too few classes, too small images, and for a net that normalises, colours it does not know."""
    check_count("classes", classes, 2)
    if normalised:
        check_colours(name, shape)
    if min(shape[1:]) < least:
        raise InputError(
            f"{name} needs images of at least {least}×{least} pixels, got {shape[1]}×{shape[2]}"
        )

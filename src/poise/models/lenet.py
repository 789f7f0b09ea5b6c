"""LeNet-5 (LeCun et al. 1998) with the ReLUs and max-pooling of today, and advertorch's wider one."""

from collections import OrderedDict

from torch import nn

from poise.checks import InputError, check_count


def lenet(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """LeNet-5: two convolutions, three linear layers, 61,706 parameters at 28×28 (LeCun et al. 1998).

    Images under 12 pixels (8×8 digits) have the second convolution padded too.

    >>> sum(p.numel() for p in lenet().parameters())
    61706
    """
    channels, height, width = shape
    check_count("classes", classes, 2)
    if min(height, width) < 4:
        raise InputError(f"lenet needs images of at least 4×4 pixels, got {height}×{width}")
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
    check_count("classes", classes, 2)
    if min(height, width) < 4:
        raise InputError(f"lenet5-advertorch needs images of at least 4×4 pixels, got {height}×{width}")
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

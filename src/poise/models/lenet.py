"""LeNet-5 (LeCun et al. 1998) with the ReLUs and max-pooling of today."""

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

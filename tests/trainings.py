"""Small training jobs for the tests: digits, nets with BatchNorm and Dropout, defenses that look on."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from poise import data
from poise.training import TrainJob


def digits():
    """256 of them."""
    return data.load("digits", split="train", images=256)


def job(defense="vanilla", **changes):
    """Three epochs of two steps."""
    settings = {"model": "lenet", "epochs": 3, "batch_size": 128, "lr": 0.02, "seed": 1}
    return TrainJob(data="digits", defense=defense, **{**settings, **changes})


@dataclass(frozen=True)
class Spy:
    """Plain training that remembers the images; it is not `Vanilla`, so nothing is cached for it."""

    seen: list = field(default_factory=list)

    def __call__(self, model, x, y, generator=None):
        self.seen.append(x)
        return F.cross_entropy(model(x), y)


@dataclass(frozen=True)
class Still:
    """A loss that no weight changes: weight decay acts alone."""

    def __call__(self, model, x, y, generator=None):
        return 0 * model(x).sum()


@dataclass(frozen=True)
class Noting:
    """A defense with a budget, that notes it."""

    eps: float
    seen: list = field(default_factory=list, repr=False)

    def __call__(self, model, x, y, generator=None):
        self.seen.append(self.eps)
        return F.cross_entropy(model(x), y)


class Stop(Exception):
    """Stands for a power cut."""


def close(ours, reference, **tolerance):
    """Every tensor of one net near that of the other."""
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **tolerance, msg=name)


def bits(net):
    """Every tensor's bytes."""
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


def normed(*, classes=10, shape=(1, 8, 8)):
    """A net with BatchNorm, Dropout, and a head."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * (shape[1] - 2) * (shape[2] - 2), classes),
    )

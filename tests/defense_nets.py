"""What the tests of defenses share: nets whose attacked losses are known, in float64.

The two-class linear net has logits (l/2, −l/2) with l = weight · x + bias, so p_0 = 1/(1 + exp(−l)),
and within the ball l moves by at most eps · ‖weight‖₁: what an attack reaches is known.
"""

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from nets import Linear, images
from poise.defenses.falcon import AdversarialCalibration
from poise.defenses.trades import Trades
from poise.threat import Linf

EPS = 0.1
GREY = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
WEIGHT = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]], dtype=torch.float64)
WEIGHT = WEIGHT / (10 * EPS) * math.log(3)  # the ball moves l by log 3: p from 1/2 to 1/4 or 3/4
BIAS = -float((WEIGHT * GREY).sum())  # l = 0 at grey
ZERO = torch.tensor([0])
THRICE = GREY.expand(3, -1, -1, -1), ZERO.expand(3)


def linear(lead=0.0):
    """The linear net with l = lead at the grey image."""
    return Linear(WEIGHT, BIAS + lead)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, expected):
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@dataclass(frozen=True)
class Change:
    """An attack that scales the images, and remembers what it was given."""

    factor: float
    uses_labels: bool = True
    given: list = field(default_factory=list, compare=False)
    ball = Linf(0.5)

    def __call__(self, model, x, y=None, *, generator=None):
        self.given.append((x, y))
        return x * self.factor


class Rows(nn.Module):
    """A net whose logits are the first pixels of an image, scaled and shifted."""

    def __init__(self, classes, low=-100.0, high=100.0):
        super().__init__()
        self.classes, self.low, self.high = classes, low, high

    def forward(self, x):
        return self.low + (self.high - self.low) * x.flatten(1)[:, : self.classes]


def smooth_net(seed=0):
    """A small float64 net in training with BatchNorm, smooth so that differences converge."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
        )
    return net.double().train()


def smooth_batch(n=6):
    return images(n, 1, shape=(1, 4, 4), dtype=torch.float64), torch.arange(n) % 4


class FixedTrades(Trades):
    def attacked(self, model, x, y, generator=None):
        return x * 0.7 + 0.1


class FixedFalcon(AdversarialCalibration):
    def attacked(self, model, x, y, generator=None):
        return x * 0.7 + 0.1


def along(net, way, length):
    """The net with its weights moved along a direction."""
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, direction in zip(moved.parameters(), way, strict=True):
            parameter.add_(length * direction)
    return moved


def directions(net, seed):
    return [torch.randn(p.shape, generator=generator(seed), dtype=p.dtype) for p in net.parameters()]

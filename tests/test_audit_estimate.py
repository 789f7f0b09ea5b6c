"""Estimates: on a clock of their own, they say what the attacks then take."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nets import conv_net, images
from poise import attacks, evaluate
from poise.auditing.timing import Cost, Estimate, estimate, plan
from poise.data import ImageSet
from poise.fast import Fast


def some(n=400, batch_size=128):
    pixels = (images(n) * 255).round().to(torch.uint8)
    return ImageSet("some", pixels, torch.arange(n) % 5, tuple("abcde"), batch_size=batch_size)


class Clock:
    """Time that passes only when someone lets it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@dataclass
class Priced:
    """An attack that does nothing, for so many seconds a batch and an image; more for a new shape."""

    clock: Clock
    image: float = 0.0
    batch: float = 0.0
    new: float = 0.0
    uses_labels: bool = False

    def __post_init__(self):
        self.sizes = []

    def __call__(self, model, x, y=None, *, generator=None):
        self.clock.now += self.image * len(x) + self.batch + self.new * (len(x) not in self.sizes)
        self.sizes.append(len(x))
        return x


class Slow(nn.Module):
    """A net whose forwards take their time."""

    def __init__(self, clock, image=1.0, call=0.0):
        super().__init__()
        self.net, self.clock, self.image, self.call = nn.Flatten(), clock, image, call

    def forward(self, x):
        self.clock.now += self.image * len(x) + self.call
        return self.net(x) - 1  # pixels themselves would look like a sigmoid's outputs


def test_attacks_of_unlike_cost_are_each_timed():
    clock = Clock()
    tried = {"cheap": Priced(clock, image=0.01), "dear": Priced(clock, image=0.5)}
    found = estimate(conv_net(), some(), tried, clock=clock)
    assert [cost.name for cost in found.costs] == ["cheap", "dear"]
    assert found.hours * 3600 == pytest.approx(400 * 0.51)


def test_what_happens_once_is_not_counted_and_what_a_batch_costs_is_shared_out():
    clock = Clock()
    found = estimate(conv_net(), some(), {"a": Priced(clock, batch=2.0, new=100.0)}, clock=clock)
    [cost] = found.costs
    assert cost.images == 4 and cost.seconds == pytest.approx(0.5)  # a hundredth of 400, 2 s / 4


def test_tries_grow_to_a_batch_and_no_further():
    clock = Clock()
    attack = Priced(clock)
    estimate(conv_net(), some(3200, batch_size=32), {"a": attack}, clock=clock)
    assert attack.sizes == [1, 1, 4, 4, 16, 16, 32, 32]


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [(3.0, [1, 1]), (2.4, [1, 1, 4, 4]), (1.2, [1, 1, 4, 4, 8, 8]), (0.3, [1, 1, 4, 4, 8, 8])],
)
def test_no_try_takes_longer_than_ten_seconds_if_the_one_before_can_tell(seconds, sizes):
    clock = Clock()
    attack = Priced(clock, image=seconds)
    found = estimate(conv_net(), some(800), {"a": attack}, clock=clock)
    assert attack.sizes == sizes
    assert found.hours * 3600 == pytest.approx(800 * seconds)


def test_judging_is_counted():
    clock = Clock()
    [cost] = estimate(Slow(clock), some(100), {"a": Priced(clock)}, clock=clock).costs
    assert cost.seconds == 2  # before and after
    assert (cost.forwards, cost.backwards) == (2, 0)


def test_devices_share_the_images_but_not_the_diagnostics():
    clock = Clock()
    found = estimate(conv_net(), some(), {"a": Priced(clock, image=1)}, devices=4, watched=16, clock=clock)
    assert found.hours * 3600 == pytest.approx(400 / 4 + 16)


@dataclass
class Asking:
    """An attack of so many forwards."""

    forwards: int
    uses_labels: bool = False

    def __call__(self, model, x, y=None, *, generator=None):
        for _ in range(self.forwards):
            model(x)
        return x


@pytest.mark.parametrize("forwards", [1, 20, 500])  # the last is too long for a second try
@pytest.mark.parametrize(("image", "call"), [(0.01, 0.0), (0.0, 0.1), (0.001, 0.1)])
def test_the_estimate_is_what_the_evaluation_takes(image, call, forwards):
    clock, data = Clock(), some(1600, batch_size=32)
    net, attack = Slow(clock, image=image, call=call), Asking(forwards)
    found = estimate(net, data, {"a": attack}, clock=clock)
    tried, began = clock(), clock()
    evaluate(net, data, attack)
    took = clock() - began
    # the judge's two forwards are four calls
    assert found.hours * 3600 == pytest.approx(took, rel=0.06)
    assert tried < 0.25 * took + 25


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (attacks.pgd(eps=0.1, steps=3), 4, 3),
        (attacks.confsmooth(eps=0.1, steps=5), 6, 5),
        (attacks.square_underconfidence(eps=0.1, queries=4), None, 0),
        (Fast(attack=attacks.pgd(eps=0.1, steps=3)), None, None),
    ],
)
def test_passes_are_counted_where_they_go_through_the_model(attack, forwards, backwards):
    net = conv_net()
    [cost] = estimate(net, some(400), {"a": attack}).costs
    assert cost.backwards == backwards
    if forwards is not None:
        assert cost.forwards == forwards + 2
    assert not net.training


def test_the_plan_in_words():
    costs = (
        Cost(name="pgd", images=16, seconds=0.36, forwards=23, backwards=20),
        Cost(name="auto", images=4, seconds=1.44, forwards=None, backwards=None),
    )
    assert plan(Estimate(50_000, costs, devices=2)).splitlines() == [
        "pgd: about 2.5 h, 23 forwards and 20 backwards an image (tried on 16 at once)",
        "auto: about 10 h (tried on 4 at once)",
        "50000 images x 2 attacks on 2 devices: about 12 h",
    ]

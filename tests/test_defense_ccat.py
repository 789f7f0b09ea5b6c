"""CCAT: its loss by hand, and its attack by a loop over plain numbers."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from defense_nets import (
    BIAS,
    EPS,
    GREY,
    WEIGHT,
    ZERO,
    Change,
    close,
    generator,
    linear,
    smooth_batch,
    smooth_net,
)
from poise import InputError, defenses
from poise.defenses.ccat import LargestWrong
from poise.draws import Draw
from poise.threat import Linf


def test_ccat_by_hand():
    """Clean half: log 2. Attacked half: at the corner (1/4, 3/4), against the uniform: ½ log 16/3."""
    loss = defenses.ccat(eps=EPS, step=EPS)(
        linear(), GREY.expand(2, -1, -1, -1), ZERO.expand(2), generator()
    )
    close(loss, (math.log(2) + 0.5 * math.log(16 / 3)) / 2)


def test_ccat_s_target_follows_the_distance():
    """Halfway to the edge with rho = 2: g = 1 − ¼, target (1/4 + 3/8, 3/8)."""
    defense = replace(defenses.ccat(rho=2.0), attack=Change(0.5))  # moves grey by 1/4, of the 1/2 there are
    p = 1 / (1 + math.exp(-BIAS / 2))  # l = weight·grey/2 + bias = bias/2
    loss = defense(linear(), GREY, ZERO)
    close(loss, -5 / 8 * math.log(p) - 3 / 8 * math.log(1 - p))


def test_ccat_s_g_is_that_of_the_paper():
    moved = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.2], dtype=torch.float64)
    expected = [0, 1 - 0.9**10, 1 - 0.5**10, 1, 1]
    assert defenses.ccat(eps=0.1).uniform_share(moved).tolist() == pytest.approx(expected)


def test_ccat_s_first_half_is_clean_and_an_odd_image_is_attacked():
    x, y = smooth_batch(5)
    attack = Change(0.5)
    replace(defenses.ccat(), attack=attack)(smooth_net(), x, y)
    [(given_x, given_y)] = attack.given
    assert torch.equal(given_x, x[2:]) and torch.equal(given_y, y[2:])


def test_the_largest_wrong_probability_only_rises_and_a_step_too_long_is_shortened():
    """Class 1 is likeliest at 0.5 alone: a step of 1/5 would overshoot for ever."""

    def peak(x):
        lead = -100 * (x.flatten(1)[:, :1] - 0.5).square()
        return torch.cat([torch.zeros_like(lead), lead], dim=1)

    x = torch.full((8, 1, 1, 1), 0.4, dtype=torch.float64) + torch.arange(8)[:, None, None, None] * 0.01
    attack, y = LargestWrong(ball=Linf(0.3), step=0.2, steps=40), torch.zeros(8, dtype=torch.long)
    heights = [
        peak(replace(attack, steps=steps)(peak, x, y, generator=generator()))[:, 1]
        for steps in (1, 5, 20, 40)
    ]
    assert all((later >= sooner).all() for sooner, later in itertools.pairwise(heights))
    assert heights[-1].min() > -0.01
    no_shrink = replace(attack, shrink=1.0, momentum=0.0)(peak, x, y, generator=generator())
    assert peak(no_shrink)[:, 1].min() < -0.01


def test_the_attack_of_ccat_is_momentum_and_backtracking():
    """One pixel, by a loop over plain numbers; class 1 is likeliest at 0.5."""

    def height(x):
        return -100 * (x - 0.5) ** 2

    def net(x):
        lead = height(x.flatten(1))
        return torch.cat([torch.zeros_like(lead), lead], dim=1)

    x = torch.linspace(0.3, 0.7, 6, dtype=torch.float64).reshape(6, 1, 1, 1)
    attack, y = LargestWrong(ball=Linf(0.3), step=0.2, steps=12), torch.zeros(6, dtype=torch.long)
    start = attack.start(x, Draw.of(x))
    found = attack(net, x, y).flatten().tolist()
    turns = 0
    for center, at, expected in zip(x.flatten().tolist(), start.flatten().tolist(), found, strict=True):
        size, way = 0.2, 0.0
        for _ in range(12):
            way = 0.9 * way + 0.1 * math.copysign(1, 0.5 - at)
            new = min(max(at + size * way, center - 0.3, 0), center + 0.3, 1)
            if height(new) >= height(at):
                turns += (new > 0.5) != (at > 0.5)
                at = new
            else:
                size /= 1.5
        assert expected == pytest.approx(at, abs=1e-9)
    assert turns > 3  # they did overshoot


def test_the_attack_of_ccat_moves_where_the_probability_is_zero():
    """exp(−2000) is 0 in float64 and has no gradient; its logarithm has."""
    moved = LargestWrong(ball=Linf(EPS), step=EPS, steps=40)(linear(2000.0), GREY, ZERO) - GREY
    torch.testing.assert_close(moved, -EPS * WEIGHT.sign())


def test_the_largest_wrong_probability_needs_the_labels():
    with pytest.raises(InputError, match="y must be given"):
        LargestWrong(ball=Linf(0.3), step=0.2, steps=1)(linear(), GREY)


def test_the_first_step_against_the_label_is_a_tenth_of_the_step_with_momentum():
    attack = LargestWrong(ball=Linf(0.3), step=0.02, steps=1)
    free = replace(attack, momentum=0.0)
    start = attack.start(GREY, Draw.of(GREY))
    for found, length in ((attack, 0.002), (free, 0.02)):
        moved = (found(linear(), GREY, ZERO) - start) * -WEIGHT.sign()  # lowers l, raises class 1
        assert moved.flatten().tolist() == pytest.approx([length] * 4)


def test_the_attack_of_ccat_begins_at_every_distance_alike():
    x = (
        torch.full((4000, 1, 4, 4), 0.5, dtype=torch.float64)
        + 1e-6 * torch.arange(4000)[:, None, None, None]
    )
    attack = LargestWrong(ball=Linf(0.25), step=0.1, steps=1)
    delta = attack.start(x, Draw.of(x, generator())) - x
    far = delta.flatten(1).abs().amax(dim=1)
    # u on (0, 1): mean 1/2, variance 1/12; a pixel's mean is 0, with variance at most 1/3. 5 sigma each.
    assert abs(float(far.mean()) / 0.25 - 0.5) < 5 * math.sqrt(1 / 12 / 4000)
    assert float(far.max()) <= 0.25 and float(far.min()) < 0.001
    assert abs(float(delta.mean()) / 0.25) < 5 * math.sqrt(1 / 3 / delta.numel())


def test_the_attack_of_ccat_takes_a_step_that_changes_nothing():
    """On a plain the probability does not fall: the source accepts, and the walk goes on at full length."""
    calls = []

    def plain(x):
        calls.append(x.detach())
        return torch.zeros(len(x), 2, dtype=x.dtype) + 0 * x.sum(dim=(1, 2, 3))[:, None] + x.mean() * 0

    def slope(x):  # a gradient everywhere, and a probability that rounds to the same number
        return torch.stack([x.sum(dim=(1, 2, 3)) * 0, 1e-30 * x.sum(dim=(1, 2, 3))], dim=1) + plain(x)

    x = torch.full((1, 1, 2, 2), 0.5)
    attack = LargestWrong(ball=Linf(0.25), step=0.03, steps=3, momentum=0.0)
    end = attack(slope, x, torch.zeros(1, dtype=torch.long))
    start = attack.start(x, Draw.of(x))
    torch.testing.assert_close(end, Linf(0.25).project(start + 0.09, x))

"""UAT-Mix: who gets which images; and the unprojected readings of UAT."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from defense_nets import Change, close, generator, smooth_batch, smooth_net
from poise import attacks, defenses
from poise.defenses.uat_mix import MixedTraining


@pytest.mark.parametrize(("n", "share", "first"), [(6, 0.5, 3), (8, 0.25, 2), (4, 0.0, 0), (4, 1.0, 4)])
def test_uat_mix_gives_every_image_to_one_of_the_attacks_with_its_own_label(n, share, first):
    x, y = smooth_batch(n)
    parts, net = [Change(0.5), Change(0.9, uses_labels=False)], smooth_net()
    loss = MixedTraining(*parts, share)(net, x, y, generator(1))
    (given_x, given_y), (other_x, other_y) = parts[0].given[0], parts[1].given[0]
    assert len(given_x) == first and other_y is None
    index = [next(i for i in range(n) if torch.equal(x[i], image)) for image in (*given_x, *other_x)]
    assert sorted(index) == list(range(n)) and torch.equal(given_y, y[index[:first]])
    joined = torch.cat([given_x * 0.5, other_x * 0.9])
    close(loss, F.cross_entropy(smooth_net()(joined), y[index]).item())


@pytest.mark.parametrize(("n", "share"), [(1, 0.5), (5, 0.5), (3, 0.1)])
def test_uat_mix_meets_its_share_on_average(n, share):
    x, y = smooth_batch(n)
    first, shared, calls = Change(0.5), generator(5), 400
    defense = MixedTraining(first, Change(0.9), share)
    for _ in range(calls):
        defense(lambda x: x.flatten(1)[:, :4], x, y, shared)
    sizes = torch.tensor([float(len(given)) for given, _ in first.given])
    assert set(sizes.tolist()) == {math.floor(share * n), math.ceil(share * n)}
    low = share * n % 1  # one more image with this chance; four standard errors: 1 false alarm in 16,000
    assert abs(sizes.mean() - share * n) < 4 * math.sqrt(low * (1 - low) / calls)


def test_uat_mix_splits_at_random():
    x, y = smooth_batch(4)
    first, shared = Change(0.5), generator(2)
    for _ in range(50):
        MixedTraining(first, Change(0.9), 0.5)(lambda x: x.flatten(1)[:, :4], x, y, shared)
    chosen = {
        tuple(sorted(next(i for i in range(4) if torch.equal(x[i], image)) for image in given))
        for given, _ in first.given
    }
    assert len(chosen) == 6  # of the 6 pairs, one is missed with a chance below 6 · (5/6)^50 < 0.0007


def test_uat_mix_s_attacks_are_those_of_its_description():
    first, second = defenses.uat_mix().first, defenses.uat_mix().second
    assert first == attacks.pgd(eps=8 / 255, step=8 / 255 / 2.5, steps=5, random_start=True)
    assert second == attacks.confsmooth(eps=8 / 255, step=second.step, steps=5, keep="last")
    assert second.step == pytest.approx(5 / 255)


def test_unprojected_attacks_leave_the_ball_but_not_the_box():
    x, _ = smooth_batch()
    for name, kept in (("uat-gap", 8 / 255), ("uat-smooth", 8 / 255)):
        held, free = defenses.build(name), defenses.build(f"{name}-unprojected")
        assert replace(free.attack, ball=held.attack.ball) == held.attack
        gentle = smooth_net().eval()
        moved = free.attack(gentle, x)
        assert (moved - x).abs().max() > 2 * kept and moved.min() >= 0 and moved.max() <= 1
        assert (held.attack(gentle, x) - x).abs().max() <= kept + 1e-12

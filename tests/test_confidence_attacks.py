"""Attacks on the confidence other than downwards: each moves it where it says, for every image."""

import pytest
import torch

from nets import conv_net, images
from poise import InputError
from poise.attacks import (
    ace,
    adaptive,
    auto,
    confsmooth,
    dropout_cited,
    dropout_rescaled,
    max_miscalibration,
    overconfidence,
    pgd,
    random_confidence,
    target_confidence,
    worst_case,
)
from poise.attacks.worst_case import Restarts
from poise.objectives import NegativeCrossEntropy

SEEDS = range(3)


def task(seed, n=16):
    """A net, images, and labels of which about half are the net's predictions."""
    net, x = conv_net(seed), images(n, seed + 50)
    with torch.no_grad():
        prediction = net(x).argmax(dim=1)
    y = prediction.clone()
    y[::2] = (y[::2] + 1) % 5
    return net, x, y, prediction


def msp(net, x):
    """The confidence of each image by a forward of its own."""
    with torch.no_grad():
        return torch.cat([net(image[None]).softmax(dim=1).amax(dim=1) for image in x])


def kept(net, x, x_adv):
    with torch.no_grad():
        return torch.equal(net(x).argmax(dim=1), torch.cat([net(i[None]).argmax(1) for i in x_adv]))


@pytest.mark.parametrize("seed", SEEDS)
def test_overconfidence_raises_every_image_and_keeps_its_label(seed):
    net, x, _, _ = task(seed)
    x_adv = overconfidence(eps=0.05, steps=5)(net, x)
    assert (msp(net, x_adv) > msp(net, x)).all() and kept(net, x, x_adv)


@pytest.mark.parametrize(
    "attack", [max_miscalibration(eps=0.05, steps=5), ace(eps=0.05)], ids=["max", "ace"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_right_answers_lose_confidence_and_wrong_ones_gain_it(attack, seed):
    net, x, y, prediction = task(seed)
    x_adv = attack(net, x, y)
    change, right = msp(net, x_adv) - msp(net, x), y == prediction
    assert kept(net, x, x_adv)
    # float32 judged one by one: a change of nothing may read as 1e-7
    assert (change[right] < 1e-6).all() and (change[~right] > -1e-6).all()
    assert change[right].mean() < -0.01 and change[~right].mean() > 0.01


def test_without_labels_every_answer_counts_as_right():
    net, x, _, _ = task(0)
    assert (msp(net, max_miscalibration(eps=0.05, steps=5)(net, x)) < msp(net, x)).all()


@pytest.mark.parametrize("target", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_target_confidence_comes_as_near_as_the_budget_lets_it(target, seed):
    net, x, _, _ = task(seed)
    before, after = msp(net, x), msp(net, target_confidence(target=target, eps=0.3, steps=30)(net, x))
    assert ((after - target).abs() <= (before - target).abs() + 1e-6).all()
    low = msp(net, worst_case([auto(eps=0.3), adaptive(eps=0.3)])(net, x))
    high = msp(net, overconfidence(eps=0.3, steps=30)(net, x))
    within = (low + 0.05 < target) & (target < high - 0.05)
    assert within.any() and ((after - target).abs()[within] < 0.02).float().mean() > 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_random_confidence_aims_at_the_targets_that_it_names(seed):
    net, x, _, _ = task(seed, n=32)
    attack = random_confidence(eps=0.3, steps=30)
    target = attack.targets(x, 5, generator=torch.Generator().manual_seed(seed))
    assert ((target > 0.25) & (target < 0.99)).all() and target.std() > 0.1
    x_adv = attack(net, x, generator=torch.Generator().manual_seed(seed))
    off = (msp(net, x_adv) - target).abs()
    assert off.mean() < 0.5 * (msp(net, x) - target).abs().mean() and kept(net, x, x_adv)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_worst_case_is_the_lowest_of_its_members_image_by_image(seed):
    net, x, _, _ = task(seed)
    members = [adaptive(eps=0.05, steps=5), confsmooth(eps=0.05, steps=5), auto(eps=0.05, steps=5)]
    lowest = torch.stack([msp(net, attack(net, x)) for attack in members]).amin(dim=0)
    x_adv = worst_case(members)(net, x)
    assert torch.allclose(msp(net, x_adv), lowest, atol=1e-6) and kept(net, x, x_adv)


def test_a_member_that_loses_labels_adds_only_points_that_keep_them():
    net, x, _, _ = task(0)
    x_adv = worst_case([pgd(eps=0.3, steps=5), adaptive(eps=0.05, steps=5)])(net, x)
    assert kept(net, x, x_adv)


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="at least one"):
        worst_case([])


@pytest.mark.parametrize("seed", SEEDS)
def test_more_restarts_are_never_worse_and_each_image_gets_its_own(seed):
    net, x, y, _ = task(seed)
    losses = []
    for restarts in (2, 4):
        attack = pgd(eps=0.03, steps=2, random_start=True, restarts=restarts)
        assert isinstance(attack, Restarts)
        with torch.no_grad():
            losses.append(NegativeCrossEntropy()(net(attack(net, x, y)), y))
    assert (losses[1] <= losses[0] + 1e-6).all() and (losses[1] < losses[0] - 1e-6).any()


def test_restarts_without_a_random_start_are_refused():
    with pytest.raises(InputError, match="random_start"):
        pgd(restarts=3)


@pytest.mark.parametrize("factory", [dropout_rescaled, dropout_cited])
def test_the_published_readings_leave_the_ball_by_the_share_kept(factory):
    net, x, y, _ = task(0)
    delta = (factory(eps=0.01, step=0.01, steps=3)(net, x, y) - x).abs().max()
    assert 0.01 < delta <= 0.2 + 1e-6  # 20 eps


def test_the_cited_reading_keeps_every_prediction():
    net, x, y, _ = task(1)
    x_adv = dropout_cited(eps=0.01, steps=5)(net, x, y)
    with torch.no_grad():
        assert torch.equal(net(x_adv).argmax(dim=1), net(x).argmax(dim=1))

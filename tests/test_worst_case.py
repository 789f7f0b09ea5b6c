"""The worst case's gradient budget: every member's own steps, or as many in all as one of them takes."""

from dataclasses import replace

import pytest
import torch

from nets import Counting, conv_net, images, predictions
from poise import InputError
from poise.attacks import (
    ace,
    adaptive,
    auto,
    build,
    confsmooth,
    cw,
    deepfool,
    pgd,
    pgd_bisect,
    random_confidence,
    square_underconfidence,
    worst_case,
)

MEMBERS = [adaptive(steps=12, eps=0.05), confsmooth(steps=20, eps=0.05), auto(steps=8, eps=0.05)]


def backwards(attack):
    net = Counting(conv_net())
    attack(net, images(6))
    return net.backwards


@pytest.mark.parametrize(
    ("steps", "shares"),
    [
        ([12, 20, 8], [7, 7, 6]),
        ([20, 20], [10, 10]),
        ([5, 1, 1], [2, 2, 1]),
        ([9], [9]),
        ([3, 1, 2], [1, 1, 1]),
    ],
)
def test_the_largest_budget_is_shared_out_and_the_first_get_what_is_over(steps, shares):
    attack = worst_case([adaptive(steps=n) for n in steps], budget="split")
    assert [member.steps for member in attack.attacks] == shares
    assert backwards(attack) == max(steps)


def test_gradients_whole_and_split():
    assert backwards(worst_case(MEMBERS)) == backwards(worst_case(MEMBERS, budget="whole")) == 40
    assert backwards(worst_case(MEMBERS, budget="split")) == 20
    apgd = build("apgd_ce", steps=7)
    assert backwards(worst_case([*MEMBERS, apgd, pgd(steps=2)], budget="split")) == 20


def test_a_member_is_changed_in_its_steps_alone():
    split = worst_case(MEMBERS, budget="split")
    by_hand = worst_case([replace(m, steps=n) for m, n in zip(MEMBERS, (7, 7, 6), strict=True)])
    assert split == by_hand and hash(split) == hash(by_hand)
    assert [m.steps for m in MEMBERS] == [12, 20, 8]


@pytest.mark.parametrize("seed", range(3))
def test_a_split_budget_keeps_labels_and_is_the_lowest_of_its_members(seed):
    net, x = conv_net(seed), images(16, seed + 10)

    def top(x):
        with torch.no_grad():
            return net(x).softmax(dim=1).amax(dim=1)

    attack = worst_case(MEMBERS, budget="split")
    lowest = torch.stack([top(member(net, x)) for member in attack.attacks]).amin(dim=0)
    x_adv = attack(net, x)
    assert torch.allclose(top(x_adv), lowest, atol=1e-6) and (top(x_adv) < top(x)).any()
    assert torch.equal(predictions(net, x_adv), predictions(net, x))


@pytest.mark.parametrize(
    "member",
    [ace(), cw(), deepfool(), pgd_bisect(), random_confidence(), square_underconfidence()],
    ids=lambda member: type(member).__name__,
)
def test_what_has_no_steps_of_one_gradient_cannot_share(member):
    with pytest.raises(InputError, match=f"split.*{type(member).__name__}.*steps.*budget='whole'"):
        worst_case([adaptive(), member], budget="split")
    assert worst_case([adaptive(), member]).attacks == (adaptive(), member)


def test_too_few_gradients_are_refused():
    with pytest.raises(InputError, match=r"2 gradients are too few.*3 attacks"):
        worst_case([adaptive(steps=2)] * 3, budget="split")


@pytest.mark.parametrize("budget", ["half", None, 20])
def test_another_budget_is_refused(budget):
    with pytest.raises(InputError, match=f"budget.*whole, split.*{budget!r}"):
        worst_case(MEMBERS, budget=budget)


@pytest.mark.parametrize("budget", ["whole", "split"])
def test_an_empty_list_is_refused(budget):
    with pytest.raises(InputError, match="at least one"):
        worst_case([], budget=budget)


@pytest.mark.parametrize("margin", [-0.1, 1.1, float("nan")])
def test_a_margin_out_of_range_is_refused(margin):
    with pytest.raises(InputError, match=f"margin.*{margin}"):
        worst_case(MEMBERS, margin=margin)

"""Algorithm 1 against a reference that follows the paper's listing line by line, one image at a time."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from nets import Counting, confidence, conv_net, images, predictions
from poise.attacks import adaptive, confsmooth, dropout, dropout_accumulated, fgsm, pgd

STEPS = 10
SMOOTHING = 0.98
GROW = 1.1
ATTACKS = {"adaptive": adaptive, "confsmooth": confsmooth}
NETS = [(0, 2.0), (0, 30.0), (1, 30.0)]
SIZES = [(0.004, 0.003), (0.03, 5 / 255), (0.2, 0.2)]


def gap(logits, y):
    """Eq. 1 for one image."""
    p = logits.softmax(dim=0)
    return p[y] - max(p[j] for j in range(len(p)) if j != y)


def smoothed_cross_entropy(logits, y):
    """Eq. 7 for one image."""
    log_q = logits.log_softmax(dim=0)
    target = [(1 - SMOOTHING) * (i == y) + SMOOTHING / len(log_q) for i in range(len(log_q))]
    return -sum(t * q for t, q in zip(target, log_q, strict=True))


LOSSES = {"adaptive": gap, "confsmooth": smoothed_cross_entropy}


def inwards(x_temp, x, eps):
    """Line 5 without what rounding adds to the budget, found in 64 bits of mantissa."""
    over = torch.from_numpy(abs(x_temp.numpy().astype(np.longdouble) - x.numpy()) > np.longdouble(eps))
    return torch.where(over, torch.nextafter(x_temp, x), x_temp)


def algorithm1(model, x, y, loss, *, eps, step, steps):
    """Algorithm 1 for one image (1, c, h, w), and how often each of its branches was taken.

    The sign of line 5 is minus and its line 12 follows eq. 6 (the readings); 2 steps + 1 forwards.
    """
    branches = Counter()
    x_adv, alpha = x, step  # line 1
    with torch.no_grad():
        logits = model(x)[0]
    y = int(logits.argmax()) if y is None else int(y)
    l_adv = loss(logits, y)  # line 2
    for _ in range(steps):  # line 3
        leaf = x_adv.clone().requires_grad_()
        gradient = torch.autograd.grad(loss(model(leaf)[0], y), leaf)[0]  # line 4
        delta = (x_adv - alpha * gradient.sign() - x).clamp(-eps, eps)  # line 5
        x_temp = inwards((x + delta).clamp(0, 1), x, eps)
        with torch.no_grad():
            logits = model(x_temp)[0]
        l_temp = loss(logits, y)
        if logits.argmax() != y:  # line 6
            alpha = alpha / 2
            branches["stepped back"] += 1
        elif l_temp < l_adv:  # line 8
            alpha = alpha * GROW
            x_adv, l_adv = x_temp, l_temp
            branches["improved"] += 1
        else:  # line 11
            x_adv, l_adv = x_temp, l_temp  # eq. 6
            branches["kept, no better"] += 1
    return x_adv, branches  # line 15


@cache
def task(seed, scale):
    """A net, five images, and labels that are mostly not the net's predictions."""
    return (
        conv_net(seed, scale=scale, dtype=torch.float64),
        images(5, seed + 100, dtype=torch.float64),
        torch.arange(5),
    )


@cache
def reference(name, net, size, with_labels):
    model, x, y = task(*net)
    labels = y if with_labels else [None] * len(x)
    runs = [
        algorithm1(model, image[None], label, LOSSES[name], eps=size[0], step=size[1], steps=STEPS)
        for image, label in zip(x, labels, strict=True)
    ]
    return torch.cat([x_adv for x_adv, _ in runs]), sum((taken for _, taken in runs), Counter())


def printed(name, size):
    """The attack as the paper prints it."""
    return ATTACKS[name](eps=size[0], step=size[1], steps=STEPS, grow=GROW, keep="last")


@pytest.mark.parametrize("with_labels", [False, True], ids=["prediction", "labels"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"eps{size[0]}")
@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_image_of_a_batch_ends_where_the_printed_algorithm_ends(name, net, size, with_labels):
    model, x, y = task(*net)
    expected, _ = reference(name, net, size, with_labels)
    assert torch.equal(printed(name, size)(model, x, y if with_labels else None), expected)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"eps{size[0]}")
@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_alone_ends_where_the_printed_algorithm_ends(name, net, size):
    model, x, _ = task(*net)
    expected, _ = reference(name, net, size, with_labels=False)
    attack = printed(name, size)
    assert torch.equal(torch.cat([attack(model, image[None]) for image in x]), expected)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_comparison_sees_every_branch_often(name):
    taken = sum((reference(name, net, size, False)[1] for net in NETS for size in SIZES), Counter())
    assert min(taken["stepped back"], taken["improved"], taken["kept, no better"]) >= 25, taken


@pytest.mark.parametrize("name", ATTACKS)
def test_the_comparison_sees_images_of_one_batch_take_different_branches(name):
    """Else a step size shared by the batch would pass."""
    model, x, _ = task(*NETS[1])
    runs = [
        algorithm1(model, image[None], None, LOSSES[name], eps=0.03, step=5 / 255, steps=STEPS)[1]
        for image in x
    ]
    assert len({run["stepped back"] for run in runs}) > 1


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("factory", [adaptive, confsmooth, dropout, pgd])
def test_steps_plus_one_forwards_and_steps_backwards(factory, steps, keep):
    net = Counting(conv_net())
    factory(steps=steps, keep=keep)(net, images(3))
    assert (net.forwards, net.backwards) == (steps + 1, steps)


def test_fgsm_takes_two_forwards_and_one_backward():
    net = Counting(conv_net())
    fgsm()(net, images(3))
    assert (net.forwards, net.backwards) == (2, 1)


def test_a_random_start_without_labels_takes_one_more_forward_for_the_prediction():
    net = Counting(conv_net())
    attack = pgd(steps=5, random_start=True)
    attack(net, images(3))
    assert (net.forwards, net.backwards) == (7, 5)
    attack(net, images(3), torch.zeros(3, dtype=torch.int64))
    assert (net.forwards, net.backwards) == (7 + 6, 5 + 5)


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"eps{size[0]}")
@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_best_is_no_more_confident_than_last_nor_than_x(name, net, size, margin):
    model, x, _ = task(*net)
    options = {"eps": size[0], "step": size[1], "steps": STEPS, "margin": margin}
    last, best = (ATTACKS[name](**options, keep=keep)(model, x) for keep in ("last", "best"))
    y = predictions(model, x)
    reached = confidence(model, best, y)
    assert (predictions(model, best) == y).all()
    assert (reached <= confidence(model, last, y) + 1e-12).all()
    assert (reached <= confidence(model, x, y) + 1e-12).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_best_is_sometimes_better_than_last(name):
    model, x, _ = task(1, 30.0)
    y = predictions(model, x)
    options = {"eps": 0.03, "steps": STEPS, "margin": 0}
    last, best = (ATTACKS[name](**options, keep=keep)(model, x) for keep in ("last", "best"))
    assert (confidence(model, best, y) < confidence(model, last, y) - 1e-3).any()


@pytest.mark.parametrize("net", NETS, ids=str)
def test_best_keeps_the_label_also_where_the_walk_loses_it(net):
    model, x, _ = task(*net)
    y = predictions(model, x)
    last, best = (
        dropout_accumulated(eps=0.03, step=0.005, keep_fraction=0.95, keep=keep)(model, x)
        for keep in ("last", "best")
    )
    assert (predictions(model, last) != y).any()
    assert (predictions(model, best) == y).all()
    assert (confidence(model, best, y) <= confidence(model, x, y) + 1e-12).all()


@pytest.mark.parametrize("net", NETS, ids=str)
def test_best_against_the_true_label_is_the_least_likely_point_whatever_its_label(net):
    model, x, y = task(*net)
    last, best = (pgd(eps=0.1, step=0.1, steps=STEPS, keep=keep)(model, x, y) for keep in ("last", "best"))
    assert (predictions(model, best) != y).any()
    assert (confidence(model, best, y) <= confidence(model, last, y) + 1e-12).all()


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("factory", [adaptive, confsmooth, dropout])
def test_more_steps_are_never_worse_with_the_best_kept(factory, net):
    model, x, _ = task(*net)
    y = predictions(model, x)
    reached = torch.stack(
        [
            confidence(model, factory(eps=0.01, step=0.004, steps=steps, keep="best")(model, x), y)
            for steps in (0, 1, 2, 4, 8, 16)
        ]
    )
    assert (reached.diff(dim=0) <= 1e-12).all()
    assert reached[-1].mean() < reached[0].mean()


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("seed", range(3))
def test_pgd_lowers_the_probability_of_the_label_also_where_the_label_is_not_predicted(seed, keep):
    model, x, _ = task(seed, 2.0)
    wrong = (predictions(model, x) + 1) % 5
    x_adv = pgd(eps=0.03, step=0.005, keep=keep)(model, x, wrong)
    assert (confidence(model, x_adv, wrong) < confidence(model, x, wrong)).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ATTACKS)
def test_a_wrong_prediction_is_kept_and_loses_confidence_like_a_right_one(name, seed):
    """The attack speaks of ŷ; a true label that differs has no part in it, so none is given."""
    model, x, _ = task(seed, 30.0)
    y = predictions(model, x)
    x_adv = ATTACKS[name](eps=0.05)(model, x)
    assert (predictions(model, x_adv) == y).all()
    assert (confidence(model, x_adv, y) < confidence(model, x, y)).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_that_is_not_of_the_given_class_stays(name, seed):
    """Downhill from a class that is not predicted the class never is: every step goes back (eq. 6)."""
    model, x, _ = task(seed, 2.0)
    wrong = model(x).argmin(dim=1)
    assert torch.equal(ATTACKS[name](eps=0.03)(model, x, wrong), x)

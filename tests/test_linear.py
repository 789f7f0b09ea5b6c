"""A linear model of two classes, where the best attack is known in closed form (after adv-lib's).

The logits differ by z = w · x + b. The confidence of the predicted class grows with |z|, so the best
attack moves against w if z > 0 and along w if z < 0, as far as ball and box allow.
"""

from itertools import pairwise

import pytest
import torch

from nets import Linear, confidence, images, predictions
from poise.attacks import adaptive, confsmooth, dropout_accumulated, fgsm, pgd

EPS = 0.06
TASKS = [(0, (1, 1, 2), 9), (1, (1, 28, 28), 1), (1, (1, 28, 28), 9), (2, (3, 8, 8), 9)]
each_task = pytest.mark.parametrize(("seed", "shape", "n"), TASKS, ids=str)
each_seed = pytest.mark.parametrize("seed", range(3))
CLOSE = {"rtol": 0, "atol": 1e-12}


def weights(seed, shape):
    """A direction of length 1."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w / w.norm()


def lead(model, x):
    """w · x + b."""
    logits = model(x)
    return logits[:, 0] - logits[:, 1]


def away_from(y):
    """The side of w that lowers the class: −1 for the first, which wins where z > 0, else +1."""
    return (2.0 * y.double() - 1).reshape(-1, 1, 1, 1)


def out_of_reach(seed, shape, x):
    """A model of which no image changes its label within EPS, whichever the norm; the first class wins.

    The least lead left, at the worst corner of the largest ball, is 0.3.
    """
    w = weights(seed, shape)
    reach = EPS * w.abs().sum()
    return Linear(w, 0.3 + reach - float((x * w).flatten(1).sum(dim=1).min()))


def mirrored(model):
    """The same model with its classes exchanged: the second class wins."""
    return Linear(-model.weight, -model.bias)


@each_task
@pytest.mark.parametrize("winner", [0, 1])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_gap_attack_reaches_the_corner_where_no_label_is_in_reach(keep, winner, n, shape, seed):
    x = images(n, seed, shape=shape, dtype=torch.float64)
    model = out_of_reach(seed, shape, x)
    optimum = (x - EPS * model.weight.sign()).clamp(0, 1)
    model = mirrored(model) if winner else model
    assert (predictions(model, optimum) == winner).all()
    x_adv = adaptive(eps=EPS, step=0.02, steps=4, keep=keep)(model, x)
    torch.testing.assert_close(x_adv, optimum, **CLOSE)


@each_task
def test_the_gap_attack_reaches_the_pole_of_the_l2_ball_where_the_box_is_far(n, shape, seed):
    x = 0.25 + 0.5 * images(n, seed, shape=shape, dtype=torch.float64)
    model = out_of_reach(seed, shape, x)
    optimum = x - EPS * model.weight  # of length 1
    x_adv = adaptive(eps=EPS, step=0.02, steps=4, norm="l2")(model, x)
    torch.testing.assert_close(x_adv, optimum, **CLOSE)


def test_the_number_of_steps_to_the_corner_is_that_of_eq_5():
    # Steps of .02, .022 and .0242 add up to .0662 ≥ .06; the first two to .042 only.
    x = 0.25 + 0.5 * images(4, shape=(3, 8, 8), dtype=torch.float64)
    model = out_of_reach(0, (3, 8, 8), x)
    for steps, reached in ((1, 0.02), (2, 0.042), (3, 0.06)):
        x_adv = adaptive(eps=EPS, step=0.02, steps=steps)(model, x)
        torch.testing.assert_close(x_adv, x - reached * model.weight.sign(), **CLOSE)


def within_reach(n, seed, shape, norm):
    """A model and images of both labels, each of which can lose its label within EPS."""
    w = weights(seed, shape)
    reach = float(EPS * (w.abs().sum() if norm == "linf" else w.norm()))
    x = 0.25 + 0.5 * images(n, seed, shape=shape, dtype=torch.float64)
    wanted = 0.5 * reach * torch.linspace(1, -1, n, dtype=torch.float64)
    unwanted = (x * w).flatten(1).sum(dim=1) - 0.5 * w.sum() - wanted
    x = (x - unwanted.reshape(-1, 1, 1, 1) * w).clamp(0, 1)
    model = Linear(20 * w, -10 * w.sum())
    assert (lead(model, x).abs() < 20 * reach).all()
    return model, x


@each_task
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gap_attack_comes_down_to_one_half_and_half_the_margin(norm, n, shape, seed):
    model, x = within_reach(n, seed, shape, norm)
    y = predictions(model, x)
    for margin in (0.0, 1e-4, 0.01):
        x_adv = adaptive(eps=EPS, step=0.02, steps=60, norm=norm, margin=margin)(model, x)
        reached = confidence(model, x_adv, y)
        # A lead of the margin is a confidence of (1 + margin) / 2; nearer images stay where they are.
        floor = torch.full_like(reached, (1 + margin) / 2).minimum(confidence(model, x, y))
        assert torch.equal(predictions(model, x_adv), y)
        assert (reached >= floor - 1e-12).all()
        assert (reached <= floor + 1e-3).all()


@each_task
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_confsmooth_comes_down_to_the_smoothed_target(norm, n, shape, seed):
    # With ε = .98 and K = 2 eq. 7 is least at a confidence of .02 + .49 = .51, and the steps straddle it.
    model, x = within_reach(n, seed, shape, norm)
    y = predictions(model, x)
    x_adv = confsmooth(eps=EPS, step=0.02, steps=60, norm=norm)(model, x)
    assert torch.equal(predictions(model, x_adv), y)
    assert (confidence(model, x_adv, y) <= 0.51 + 1e-3).all()


@each_task
@pytest.mark.parametrize("keep", ["last", "best"])
def test_pgd_reaches_the_worst_corner_also_across_the_boundary(keep, n, shape, seed):
    x = images(n, seed, shape=shape, dtype=torch.float64)
    model = Linear(weights(seed, shape))
    y = torch.arange(n) % 2
    optimum = (x + EPS * away_from(y) * model.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(pgd(eps=EPS, step=0.02, steps=4, keep=keep)(model, x, y), optimum, **CLOSE)
    random_start = pgd(eps=EPS, step=0.02, steps=7, keep=keep, random_start=True)
    torch.testing.assert_close(random_start(model, x, y), optimum, **CLOSE)
    torch.testing.assert_close(fgsm(eps=EPS)(model, x, y), optimum, **CLOSE)


@each_task
def test_pgd_reaches_the_worst_pole_of_the_l2_ball(n, shape, seed):
    x = 0.25 + 0.5 * images(n, seed, shape=shape, dtype=torch.float64)
    model = Linear(weights(seed, shape))
    y = torch.arange(n) % 2
    optimum = x + EPS * away_from(y) * model.weight
    for attack in (pgd(eps=EPS, step=0.02, steps=4, norm="l2"), fgsm(eps=EPS, norm="l2")):
        torch.testing.assert_close(attack(model, x, y), optimum, **CLOSE)


@each_seed
def test_dropout_reaches_the_corner_on_the_pixels_that_its_last_mask_keeps(seed):
    x = images(6, seed, dtype=torch.float64)
    model = out_of_reach(seed, x.shape[1:], x)
    optimum = (x - EPS * model.weight.sign()).clamp(0, 1)
    # Steps of the whole radius: whatever was dropped before is made good at once.
    x_adv = dropout_accumulated(eps=EPS, step=2 * EPS, steps=3, keep_fraction=0.7)(model, x)
    kept = x_adv != x
    torch.testing.assert_close(x_adv[kept], optimum[kept], **CLOSE)
    movable = optimum != x
    # 6 · 192 pixels, some at the edge of the box: 5 sigma about the share of .7, error rate 6e-7.
    n = int(movable.sum())
    assert abs(kept[movable].double().mean() - 0.7) < 5 * (0.7 * 0.3 / n) ** 0.5


@each_seed
def test_dropout_draws_a_fresh_mask_at_every_step(seed):
    x = 0.25 + 0.5 * images(4, seed, dtype=torch.float64)
    model = out_of_reach(seed, x.shape[1:], x)
    path = dropout_accumulated(eps=EPS, step=2 * EPS, steps=4, keep_fraction=0.5).path(model, x)
    _, *masks = [at.x != x for at in path]
    # Two independent halves agree in half of the pixels: 5 sigma, nine comparisons, error rate 5e-6.
    for one, other in pairwise(masks):
        assert abs((one == other).double().mean() - 0.5) < 5 * 0.5 / x.numel() ** 0.5

"""The paper's equations on numbers worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from nets import images
from poise.attacks import dropout, dropout_accumulated, dropout_rescaled
from poise.draws import Draw
from poise.objectives import Confidence, Gap, NegativeCrossEntropy, SmoothedCrossEntropy
from poise.rules import Always, StepBack
from poise.shapes import Point
from poise.threat import Linf, Masked, Sparse

SIGMAS = 5  # a two-sided error rate of 6e-7 for each comparison of a normal mean


def logits_of(*rows):
    """Logits whose softmax is exactly these rows, up to rounding."""
    return torch.tensor(rows, dtype=torch.float64).log()


def point(probabilities, y, loss):
    """A batch that stands at some images; the rules read its logits, labels and losses only."""
    x = torch.zeros(len(y), 1, 1, 1, dtype=torch.float64)
    losses = torch.tensor(loss, dtype=torch.float64)
    return Point(x, torch.tensor(y), logits_of(*probabilities), losses, None)


def test_eq1_is_the_lead_of_the_class_over_the_best_of_the_others():
    # p = (.5, .3, .2). Class 0 leads 1 by .5 − .3 = .2; class 1 trails 0 by .3 − .5 = −.2;
    # class 2 trails 0 by .2 − .5 = −.3.
    gap = Gap()(logits_of(*[(0.5, 0.3, 0.2)] * 3), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(gap, torch.tensor([0.2, -0.2, -0.3], dtype=torch.float64))


def test_eq1_is_zero_on_a_tie_and_one_at_certainty():
    rows = torch.tensor([[3.0, 3.0, 0.0], [0.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    assert Gap()(rows, torch.tensor([1, 2, 0])).tolist() == [0.0, 0.0, 1.0]


def test_eq1_of_two_classes_moves_the_logits_by_its_own_derivative():
    # With two classes p = σ(d), gap = 2σ(d) − 1, d gap / d logit_y = 2 σ (1 − σ).
    # At p = .8: 2 · .8 · .2 = .32, and −.32 for the other.
    logits = logits_of((0.8, 0.2)).requires_grad_()
    Gap()(logits, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.32, -0.32]], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_eq2_keeps_the_share_of_pixels_and_eq3_zeroes_the_others(seed):
    # x is moved by .1 everywhere inside a ball of radius .2: a kept pixel moved by .1, another by 0.
    center = 0.25 + 0.5 * images(4, seed, shape=(3, 150, 150), dtype=torch.float64)
    for p in (0.05, 0.5, 0.95):
        moved = Masked(Linf(0.2), p).project(center + 0.1, center, Draw.of(center).at(1))
        kept = moved != center
        torch.testing.assert_close(moved[kept], (center + 0.1)[kept], rtol=0, atol=1e-15)
        sigma = math.sqrt(p * (1 - p) / kept[0].numel())
        share = kept.flatten(1).double().mean(dim=1)
        assert ((share - p).abs() < SIGMAS * sigma).all()  # 36 comparisons in all: error rate 2e-5


def test_eq2_draws_another_mask_for_every_image_and_every_step():
    center = 0.25 + 0.5 * images(2, shape=(3, 40, 40), dtype=torch.float64)
    ball, draw = Masked(Linf(0.2), 0.5), Draw.of(center)
    first, second = (ball.project(center + 0.1, center, draw.at(t)) != center for t in (1, 2))
    agreements = torch.stack([(first[0] == first[1]), *(first == second)]).flatten(1).double().mean(dim=1)
    # Independent coins agree half of the time.
    assert ((agreements - 0.5).abs() < SIGMAS * 0.5 / math.sqrt(first[0].numel())).all()


def test_eq2_with_every_pixel_kept_is_the_plain_projection():
    center = images(3, dtype=torch.float64)
    moved = images(3, seed=1, dtype=torch.float64)
    ball = Linf(0.1)
    expected = ball.project(moved, center)
    torch.testing.assert_close(
        Masked(ball, 1.0).project(moved, center, Draw.of(center)), expected, rtol=0, atol=1e-15
    )


def test_rescale_divides_what_survives_by_the_share_kept():
    # Budget .02, wish .5: the projection leaves .02; kept with share .25 it becomes .02 / .25 = .08.
    center = torch.full((1, 1, 20, 20), 0.5, dtype=torch.float64)
    moved = Masked(Linf(0.02), 0.25, rescale=True).project(center + 0.5, center, Draw.of(center))
    kept = moved != center
    assert 0 < kept.double().mean() < 1
    torch.testing.assert_close(moved[kept] - 0.5, torch.full_like(moved[kept], 0.08))


def test_rescale_stays_in_the_box():
    # .95 + .08 would be 1.03.
    center = torch.full((1, 1, 20, 20), 0.95, dtype=torch.float64)
    moved = Masked(Linf(0.02), 0.25, rescale=True).project(center + 0.5, center, Draw.of(center))
    assert set(moved.unique().tolist()) == {0.95, 1.0}


def test_the_dropout_attack_takes_its_mask_from_keep_fraction():
    assert dropout(eps=0.1, keep_fraction=0.3).ball == Sparse(Linf(0.1), 0.3)
    assert dropout_accumulated(eps=0.1, keep_fraction=0.3).ball == Masked(Linf(0.1), 0.3)
    assert dropout_rescaled(eps=0.1, keep_fraction=0.3).ball == Masked(Linf(0.1), 0.3, rescale=True)


# Five images of class 0 that stand at loss .4 with p_0 = .6, and the steps that they try:
#                          label    loss      so, by eqs. 5 and 6
#   0  (.5, .3, .2)        kept     .3 < .4   size × λ, kept
#   1  (.6, .3, .1)        kept     .4 = .4   size as it is, kept
#   2  (.7, .2, .1)        kept     .5 > .4   size as it is, kept
#   3  (.3, .5, .2)        lost     .2 < .4   size / 2, stepped back
#   4  (.3, .2, .5)        lost     .5 > .4   size / 2, stepped back
AT = point([(0.6, 0.3, 0.1)] * 5, [0] * 5, [0.4] * 5)
TRIED = point(
    [(0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.7, 0.2, 0.1), (0.3, 0.5, 0.2), (0.3, 0.2, 0.5)],
    [0] * 5,
    [0.3, 0.4, 0.5, 0.2, 0.5],
)
SIZE = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6], dtype=torch.float64)


def test_eq5_halves_grows_or_leaves_each_image_its_own_size():
    _, size = StepBack()(AT, TRIED, SIZE)
    assert size.tolist() == [0.1 * 1.1, 0.2, 0.4, 0.8 / 2, 1.6 / 2]


@pytest.mark.parametrize("grow", [1.0, 1.3, 2.0])
def test_eq5_grows_by_lambda(grow):
    _, size = StepBack(grow=grow)(AT, TRIED, SIZE)
    assert size.tolist() == [0.1 * grow, 0.2, 0.4, 0.4, 0.8]


def test_eq6_keeps_every_step_that_keeps_the_label():
    kept, _ = StepBack()(AT, TRIED, SIZE)
    assert kept.tolist() == [True, True, True, False, False]


def test_a_single_precision_size_stays_single():
    _, size = StepBack()(AT, TRIED, SIZE.float())
    assert size.dtype == torch.float32


def test_a_tie_belongs_to_the_first_class_as_argmax_has_it():
    tie = point([(0.4, 0.4, 0.2), (0.4, 0.4, 0.2)], [0, 1], [0.0, 0.0])
    kept, _ = StepBack()(tie, tie, SIZE[:2])
    assert kept.tolist() == [True, False]


def test_a_lead_below_the_margin_counts_as_lost():
    # Leads of .51 − .49 = .02, .501 − .499 = .002 and 0; a margin of .01 parts the first from the rest.
    narrow = point([(0.51, 0.49), (0.501, 0.499), (0.5, 0.5)], [0] * 3, [0.0] * 3)
    at = narrow._replace(loss=torch.ones(3, dtype=torch.float64))
    for margin, expected in (
        (0.0, [True, True, True]),
        (1e-3, [True, True, False]),
        (0.01, [True, False, False]),
    ):
        kept, size = StepBack(margin=margin)(at, narrow, torch.ones(3, dtype=torch.float64))
        assert kept.tolist() == expected
        assert size.tolist() == [1.1 if held else 0.5 for held in expected]


def test_always_keeps_every_step_and_size():
    kept, size = Always()(AT, TRIED, SIZE)
    assert kept.all() and torch.equal(size, SIZE)


def test_eq7_by_hand():
    # ε = .98 over 4 classes: ε/K = .245, so the targets are .02 + .245 = .265 and three of .245.
    # q = (.7, .1, .1, .1): ln .7 = −.356675, ln .1 = −2.302585.
    # H = .265 · .356675 + 3 · .245 · 2.302585 = .094519 + 1.692400 = 1.786919.
    # Toward a class of q = .1: .265 · 2.302585 + .245 · (.356675 + 2 · 2.302585)
    #   = .610185 + .087385 + 1.128267 = 1.825837.
    loss = SmoothedCrossEntropy(0.98)(logits_of(*[(0.7, 0.1, 0.1, 0.1)] * 2), torch.tensor([0, 3]))
    torch.testing.assert_close(
        loss, torch.tensor([1.786919, 1.825837], dtype=torch.float64), rtol=0, atol=2e-6
    )


def test_eq7_is_least_at_the_smoothed_target_itself():
    target = (0.265, 0.245, 0.245, 0.245)
    rows = logits_of(target, (0.3, 0.2, 0.25, 0.25), (0.25, 0.25, 0.25, 0.25), (0.97, 0.01, 0.01, 0.01))
    loss = SmoothedCrossEntropy(0.98)(rows, torch.zeros(4, dtype=torch.int64))
    assert (loss[1:] > loss[0]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_eq7_is_the_printed_sum_and_torch_s_label_smoothing(classes, smoothing):
    generator = torch.Generator().manual_seed(classes)
    logits = 5 * torch.randn(50, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (50,), generator=generator)
    q = logits.softmax(dim=1)
    target = (1 - smoothing) * F.one_hot(y, classes) + smoothing / classes
    loss = SmoothedCrossEntropy(smoothing)(logits, y)
    torch.testing.assert_close(loss, -(target * q.log()).sum(dim=1))
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, y, label_smoothing=smoothing))


def test_confidence_and_cross_entropy_by_hand():
    rows, y = logits_of((0.5, 0.3, 0.2), (0.5, 0.3, 0.2)), torch.tensor([0, 2])
    torch.testing.assert_close(Confidence()(rows, y), torch.tensor([0.5, 0.2], dtype=torch.float64))
    # ln .5 = −.693147, ln .2 = −1.609438
    torch.testing.assert_close(
        NegativeCrossEntropy()(rows, y),
        torch.tensor([-0.693147, -1.609438], dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )

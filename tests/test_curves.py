"""Confidence against budget, on nets whose answer is known."""

import pytest
import torch

from nets import conv_net, images
from poise import InputError, attacks, metrics
from poise.curves import confidence_curve, minimum_eps

EPSILONS = (0.01, 0.03, 0.1)


def auto(eps):
    return attacks.auto(eps=eps, steps=5)


def test_a_curve_never_rises_and_begins_below_the_clean_confidence():
    net, x = conv_net(0), images(12, 3)
    curve = confidence_curve(net, x, auto, EPSILONS)
    with torch.no_grad():
        clean = net(x).softmax(dim=1).amax(dim=1)
    assert curve.shape == (12, 3)
    assert (curve[:, 0] <= clean + 1e-6).all() and (curve.diff(dim=1) <= 0).all()
    assert curve[:, -1].mean() < clean.mean() - 0.01


def sigmoid_line(x):
    """Two classes, logit gap 20·(mean pixel − 1/2): its confidence as a function of eps is known."""
    gap = 20 * (x.flatten(1).mean(dim=1) - 0.5)
    return torch.stack([gap, torch.zeros_like(gap)], dim=1)


def test_the_least_eps_on_a_line_is_the_one_worked_by_hand():
    # Mean pixel 0.7: gap 4, MSP 1/(1 + e^-4) = .982. MSP .75 has gap log 3 = 1.0986, so the mean has
    # to fall by (4 − 1.0986) / 20 = 0.14507, which is the L∞ length. Mean 0.5 + 0.05 begins at gap 1.
    x = torch.stack([torch.full((1, 4, 4), v, dtype=torch.float64) for v in (0.7, 0.55, 1.0)])
    least = minimum_eps(
        sigmoid_line,
        x,
        lambda eps: attacks.adaptive(eps=eps),
        (0.1, 0.2),
        threshold=0.75,
        norm=metrics.linf,
    )
    assert least[0] == pytest.approx(0.14507, abs=0.2 / 2**8)
    assert least[1] == 0 and least[2] == torch.inf


@pytest.mark.parametrize("epsilons", [(), (0.1, 0.1), (0.2, 0.1)])
def test_budgets_that_do_not_rise_are_refused(epsilons):
    with pytest.raises(InputError, match="rise"):
        confidence_curve(conv_net(0), images(2), auto, epsilons)

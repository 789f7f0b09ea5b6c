"""Against adv-lib, on trained nets: PGD's success, DeepFool's and C&W's success and mean length."""

import math
import sys
import types

import pytest

from nets import predictions
from poise.attacks import cw, deepfool, pgd
from real_nets import EPS, NETS

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # for its plots alone, and does not build
each_net = pytest.mark.parametrize("name", NETS)


def lengths(net, x, x_adv, y, order=2.0):
    """The lengths of the changes, infinite where the label stayed."""
    lost = predictions(net, x_adv) != y
    return (x_adv - x).flatten(1).norm(p=order, dim=1).where(lost, math.inf)


@each_net
def test_pgd(shared_data, name):
    """They return the last image seen to be lost, or x, and look before the last step: one step more."""
    from adv_lib.attacks import pgd_linf

    net, x, y = NETS[name](shared_data, 64)
    eps = EPS[name]
    theirs = pgd_linf(net, x, y, eps, steps=11, random_init=False, absolute_step_size=eps / 4)
    ours = pgd(eps=eps, step=eps / 4, steps=10)(net, x, y)
    lost, theirs_lost = predictions(net, ours) != y, predictions(net, theirs) != y
    assert theirs_lost.sum() > (predictions(net, x) != y).sum() + 5
    assert abs(int(lost.sum()) - int(theirs_lost.sum())) <= 2


@pytest.mark.parametrize(("name", "norm"), [("mnist", "l2"), ("cifar10", "linf")])
def test_deepfool(shared_data, name, norm):
    from adv_lib.attacks import df

    net, x, _ = NETS[name](shared_data, 24)
    y, order = predictions(net, x), {"l2": 2.0, "linf": math.inf}[norm]
    ours = lengths(net, x, deepfool(norm=norm)(net, x, y), y, order)
    theirs = lengths(net, x, df(net, x, y, steps=50, norm=order), y, order)
    assert ours.isfinite().sum() >= theirs.isfinite().sum() - 1 >= 15
    both = ours.isfinite() & theirs.isfinite()
    assert abs(ours[both].mean() / theirs[both].mean() - 1) < 0.04


def test_cw(shared_data):
    """As many gradients and the same constants: lost no less often, the mean length within 5 %."""
    from adv_lib.attacks import carlini_wagner_l2

    net, x, _ = NETS["cifar10"](shared_data, 16)
    y = predictions(net, x)
    options = {"initial_const": 0.1, "binary_search_steps": 5, "max_iterations": 60, "abort_early": False}
    theirs = lengths(net, x, carlini_wagner_l2(net, x, y, learning_rate=0.02, **options), y)
    ours = lengths(net, x, cw(steps=60, initial=0.1, lr=0.02, binary_search=5)(net, x, y), y)
    assert ours.isfinite().sum() >= theirs.isfinite().sum() > 8
    both = ours.isfinite() & theirs.isfinite()
    assert abs(ours[both].mean() / theirs[both].mean() - 1) < 0.05

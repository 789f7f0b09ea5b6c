"""No attack passes its budget, not by a rounding: in the images' dtype, and in float64."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nets import conv_net, fitted, images
from poise import InputError, curves
from poise.attacks import ATTACKS, auto, confsmooth, worst_case
from poise.attacks.descent import Descent
from poise.draws import Draw
from poise.fast import accelerated
from poise.objectives import NegativeCrossEntropy
from poise.rules import Always
from poise.threat import BALLS, Masked, add, ball, between

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
EPS = {"linf": (0.1, 0.03, 1 / 255), "l2": (0.7, 0.3), "l1": (2.1, 0.3)}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.half]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def lengths(x_adv, x, norm):
    """The lengths of the changes, summed in every way that a reader may."""
    change, wide = (x_adv - x).flatten(1), (x_adv.double() - x.double()).flatten(1)
    yield torch.linalg.vector_norm(wide, ord=ORDER[norm], dim=1)
    yield torch.linalg.vector_norm(change, ord=ORDER[norm], dim=1)
    if norm == "linf":
        yield change.abs().amax(dim=1)
    if norm == "l2":
        yield change.square().sum(dim=1).sqrt()
    if norm == "l1":
        yield change.abs().sum(dim=1)


def holds(x_adv, x, norm, eps):
    """Whether all of them are within the budget, compared as numbers of float64."""
    assert x_adv.dtype == x.dtype and ((x_adv >= 0) & (x_adv <= 1)).all()
    return all(bool((length.double() <= eps).all()) for length in lengths(x_adv, x, norm))


def offered(name, norm):
    takes = inspect.signature(ATTACKS[name]).parameters
    if "norm" not in takes:
        return norm == ("l2" if name == "cw" else "linf")
    try:
        return ATTACKS[name](norm=norm) is not None
    except InputError:
        return False


CASES = [(name, norm) for norm in BALLS for name in ATTACKS if offered(name, norm)]
BLACK = {"queries": 16}


@every_dtype
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_attack_holds_its_budget_to_the_last_bit(name, norm, dtype):
    net, takes = conv_net(1, dtype=dtype), inspect.signature(ATTACKS[name]).parameters
    for seed, eps in enumerate(EPS[norm]):
        x = images(4, 20 + seed, dtype=dtype)
        for extra in ({}, {"random_start": True}, {"keep": "last"}):
            if extra.keys() - takes.keys() or any(takes[k].default == v for k, v in extra.items()):
                continue  # the same attack again
            attack = fitted(ATTACKS, name, norm=norm, eps=eps, step=eps, steps=4, **BLACK, **extra)
            assert holds(attack(net, x), x, norm, eps), (eps, extra)


@every_dtype
@pytest.mark.parametrize("norm", BALLS)
def test_what_is_made_of_attacks_holds_the_budget_too(norm, dtype):
    net, x, eps = conv_net(1, dtype=dtype), images(4, 31, dtype=dtype), EPS[norm][0]
    members = [auto(eps=eps, steps=3, norm=norm), confsmooth(eps=eps, step=eps, steps=3, norm=norm)]
    masked = Descent(
        objective=NegativeCrossEntropy(),
        rule=Always(),
        ball=Masked(ball(norm, eps), 0.5),
        step=eps,
        steps=3,
    )
    for attack in (worst_case(members), masked, *(accelerated(member) for member in members)):
        assert holds(attack(net, x), x, norm, eps)


@every_dtype
@given(seed=st.integers(0, 2**31), eps=st.floats(1e-6, 0.9), scale=st.sampled_from([1e-3, 0.1, 1.0, 100.0]))
@pytest.mark.parametrize("norm", BALLS)
def test_a_projection_and_a_sample_are_in_the_ball(norm, dtype, seed, eps, scale):
    center = (
        images(3, seed, shape=(3, 4, 4), dtype=dtype)
        * images(3, seed + 1, shape=(3, 4, 4), dtype=dtype) ** 4
    )
    way = torch.randn(center.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    here, draw = ball(norm, eps), Draw.of(center)
    for point in (here.project(center + scale * way, center, draw), here.sample(center, draw)):
        assert holds(point, center, norm, eps)


@every_dtype
@pytest.mark.parametrize("value", [0.25, 0.5])
def test_a_budget_that_the_dtype_has_is_spent_whole(dtype, value):
    center = torch.full((1, 1, 2, 2), 0.5, dtype=dtype)
    for side in (-1, 1):
        moved = ball("linf", value).project(center + side, center, Draw.of(center))
        assert torch.equal(moved, center + side * value)


@every_dtype
@given(seed=st.integers(0, 2**31))
def test_added_is_the_nearest_point_that_goes_no_farther(dtype, seed):
    """Compared with exact sums of float64, for every dtype below it."""
    center = images(2, seed, dtype=dtype) * images(2, seed + 1, dtype=dtype) ** 6
    delta = torch.randn(center.shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * 0.1
    moved = add(center, delta)
    if dtype == torch.float64:
        moved, center, delta = moved.numpy(), center.numpy().astype("longdouble"), delta.numpy()
        assert (abs(moved - center) <= abs(delta)).all()
        return
    exact = center.double() + delta.double()
    assert ((moved.double() - center.double()).abs() <= delta.double().abs()).all()
    further = torch.nextafter(moved, torch.where(delta > 0, 2.0, -2.0).to(dtype)).double()
    assert ((delta == 0) | (torch.where(delta > 0, further >= exact, further <= exact))).all()


@every_dtype
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_points_between_lie_between(dtype, seed, share):
    start, end = (images(2, seed + i, dtype=dtype) ** (3 - 2 * i) for i in (0, 1))
    at = between(start, end, torch.full((2,), share))
    assert (at >= torch.minimum(start, end)).all() and (at <= torch.maximum(start, end)).all()
    assert torch.equal(between(start, end, torch.zeros(2)), start)


def test_the_least_budget_s_points_hold_it():
    net, x = conv_net(1, scale=20.0), images(8, 33)
    found = []

    def linf(moved, at):
        found.append(moved)
        return (moved - at).abs().amax(dim=(1, 2, 3))

    curves.minimum_eps(net, x, lambda eps: auto(eps=eps, steps=5), [0.03, 0.1], threshold=0.9, norm=linf)
    assert all(holds(moved, x, "linf", 0.1) for moved in found)


class Coarse(torch.nn.Module):
    """Logits near 3e6, sums of 256 large terms, whose last digits another order of summing changes."""

    def __init__(self, seed):
        super().__init__()
        self.last = torch.nn.Linear(256, 3, bias=False)
        with torch.no_grad():
            spread = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
            self.last.weight.copy_(2e4 * (1 + 0.05 * spread))

    def forward(self, x):
        return self.last(x.flatten(1))


KEEPING = [name for name in ATTACKS if "margin" in inspect.signature(ATTACKS[name]).parameters]


@pytest.mark.parametrize("name", KEEPING)
def test_labels_hold_in_float64_where_the_logits_are_coarse(name):
    net, x = Coarse(0), images(40, shape=(1, 16, 16))
    options = {"eps": 0.3, "step": 0.02, "steps": 60, "queries": 100, "keep": "best"}
    with torch.no_grad():
        y = net(x).argmax(dim=1)
        kept = (net(x).topk(2, dim=1).values.diff(dim=1)[:, 0] < -100).nonzero()[:, 0]  # x itself tells
    x_adv = fitted(ATTACKS, name, **options)(net, x)
    net.double()
    with torch.no_grad():
        now = net(x_adv.double())
    assert torch.equal(now.argmax(dim=1)[kept], y[kept]) and len(kept) > 10

"""Certificates: nothing that any attack or any point of the ball does may cross them."""

import math
from itertools import cycle

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from certify_nets import images, points, random_net, violations
from poise.certify import crown, ibp
from poise.certify.bounds import Bounds, Linf
from poise.certify.network import READERS, read

RADII = {"linf": (0.01, 0.04, 0.15), "l2": (0.05, 0.3, 1.0)}


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("seed", range(16))
def test_no_point_of_the_ball_contradicts_a_certificate(seed, norm):
    """16 nets × 2 norms × 2 certificates × 3 images × ~2,000 points × 3 comparisons: more than 10⁶."""
    net, x, eps = random_net(seed), images(3, seed), RADII[norm][seed % 3]
    candidates = points(net, x, eps, norm, many=2200, seed=seed)
    for certificate in (ibp(eps=eps, norm=norm), crown(eps=eps, norm=norm)):
        wrong, compared = violations(net, certificate(net, x), x, candidates)
        assert compared > 18000 and wrong == 0, certificate


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("seed", range(8))
def test_crown_is_never_worse_than_ibp_and_both_are_around_the_clean_confidence(seed, norm):
    net, x, eps = random_net(seed), images(6, seed), RADII[norm][0]
    narrow, wide = crown(eps=eps, norm=norm)(net, x), ibp(eps=eps, norm=norm)(net, x)
    own = net(x).softmax(dim=1).amax(dim=1)
    assert (narrow.lower >= wide.lower).all() and (narrow.upper <= wide.upper).all()
    assert (narrow.label_kept >= wide.label_kept).all()
    assert (narrow.lower <= own + 1e-12).all() and (narrow.upper >= own - 1e-12).all()
    assert narrow.lower.dtype == narrow.upper.dtype == torch.float64
    assert (narrow.lower > 1 / net[-1].out_features + 0.05).any()  # it says something


@pytest.mark.parametrize("make", [ibp, crown])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("seed", range(8))
def test_without_a_budget_a_certificate_is_the_confidence(seed, norm, make):
    net, x = random_net(seed), images(4, seed)
    found, own = make(eps=0, norm=norm)(net, x), net(x).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(found.lower, own, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.upper, own, atol=1e-10, rtol=0)
    assert found.label_kept.all()


@pytest.mark.parametrize("make", [ibp, crown])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 1.0), ("l2", 1e6), ("l2", 1e300)])
def test_a_huge_budget_gives_one_part_in_k_and_no_nan(norm, eps, make):
    for seed in range(8):
        net = random_net(seed)
        with torch.no_grad():
            net[-1].weight *= 1e4
        found = make(eps=eps, norm=norm)(net, images(3, seed))
        assert (found.lower == 1 / net[-1].out_features).all() and (found.upper <= 1).all()
        assert found.upper.isfinite().all() and not found.label_kept.any()


@pytest.mark.parametrize("make", [ibp, crown])
@pytest.mark.parametrize(("seed", "norm"), zip(range(8), cycle(RADII)))  # every kind of net
def test_an_image_gets_the_same_alone_and_in_any_batch(seed, norm, make):
    net, certificate = random_net(seed), make(eps=RADII[norm][1], norm=norm)
    x = images(7, seed)
    x[2], x[3, :, 2:] = 0.0, 1.0  # flat images, where many bounds tie
    whole, order = certificate(net, x), torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    alone = [certificate(net, x[i : i + 1]) for i in range(7)]
    for field in ("lower", "upper"):
        together = getattr(whole, field)
        torch.testing.assert_close(
            torch.cat([getattr(a, field) for a in alone]), together, atol=1e-12, rtol=0
        )
        permuted = getattr(certificate(net, x[order]), field)
        torch.testing.assert_close(permuted, together[order], atol=1e-12, rtol=0)


def linear_net(seed, classes=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            nn.Sequential(
                nn.Conv2d(2, 3, 3, 2, 1),
                nn.BatchNorm2d(3),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(12, classes),
            )
            .double()
            .eval()
        )


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_net_of_two_classes_is_exact_at_its_vertex(seed):
    """m = w·x + b over a box is least at the corner that w points away from."""
    net, x, eps = linear_net(seed), images(4, seed), 0.07
    z = net(x.requires_grad_())
    y = z.argmax(dim=1)
    lead = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    (w,) = torch.autograd.grad(lead.sum(), x)
    x = x.detach()
    for make in (ibp, crown):
        found = make(eps=eps)(net, x)
        for sign, bound in ((-1, found.lower), (1, found.upper)):
            z = net((x + sign * eps * w.sign()).clamp(0, 1))
            expected = z.softmax(dim=1).gather(1, y[:, None])[:, 0].clamp_min(0.5 if sign < 0 else 0.0)
            if make is ibp and sign:  # exact only with rows through the whole net
                assert (sign * (bound - expected) >= -1e-12).all()
                continue
            torch.testing.assert_close(bound, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_net_in_l2_is_exact_where_the_box_plays_no_part_and_by_its_dual_where_it_does(seed):
    """Without the box the lead falls by eps·|w|; with it, the best point of a fine search is as low."""
    net, eps = linear_net(seed), 0.2
    inside = images(4, seed) * 0.5 + 0.25
    edge = images(4, seed + 50)
    for x in (inside, edge):
        z = net(x.requires_grad_())
        y = z.argmax(dim=1)
        (w,) = torch.autograd.grad((z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).sum(), x)
        x = x.detach()
        low, high = (
            torch.full((4, 1, 1, 1), 1e-9, dtype=x.dtype),
            torch.full((4, 1, 1, 1), 1e9, dtype=x.dtype),
        )
        for _ in range(200):  # x − t·w cut to [0, 1], as long as eps allows
            t = (low * high).sqrt()
            short = ((x - t * w).clamp(0, 1) - x).flatten(1).norm(dim=1) < eps
            low, high = (
                torch.where(short[:, None, None, None], t, low),
                torch.where(short[:, None, None, None], high, t),
            )
        worst = net((x - low * w).clamp(0, 1)).softmax(dim=1).gather(1, y[:, None])[:, 0]
        found = crown(eps=eps, norm="l2")(net, x).lower
        torch.testing.assert_close(found, worst.clamp_min(0.5), atol=1e-9, rtol=0)


def lead_net(*layers):
    """Two classes whose margin is what the layers give."""
    head = nn.Linear(1, 2, bias=False)
    net = nn.Sequential(nn.Flatten(), *layers, head).double().requires_grad_(False)
    head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    return net


class Side(nn.Module):
    """Two features as an image of two pixels side by side."""

    def forward(self, x):
        return x.view(len(x), 1, 1, 2)


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    layer.weight.data, layer.bias.data = (torch.tensor(v, dtype=torch.float64) for v in (weight, bias))
    return layer


@pytest.mark.parametrize(
    ("shift", "least"),
    [
        # a = x + shift in [l, u], margin relu(a) + x/2 + 1, x in [.2, .6]
        (-0.5, 1.1),  # l = -.3, u = .1: below lies 0, and x/2 + 1 >= 1.1
        (-0.3, 1.0),  # l = -.1, u = .3: below lies a, and x − .3 + x/2 + 1 >= 1.0
        (0.1, 1.4),  # never off: 1.5·.2 + 1.1
        (-0.7, 1.1),  # never on
    ],
)
def test_a_relu_lies_above_whichever_of_x_and_0_leaves_the_smaller_area(shift, least):
    """The row of one neuron, by hand; intervals know the neuron itself, so they are told less here."""
    net = lead_net(linear([[1.0], [0.5]], [shift, 2.0]), nn.ReLU(), linear([[1.0, 1.0]], [-1.0]))
    x = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    network, _ = read(net, x, READERS)
    bounds = Bounds.by_crown(network, Linf(x, 0.2))
    found = bounds.of_logits(torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), through=True)
    assert found.item() == pytest.approx(least, abs=1e-12)


def test_a_neuron_that_is_on_in_the_l2_ball_but_not_in_its_box_is_on():
    """Four pixels at .5 sum to 2 ± .4 in the ball of radius .2, to 2 ± .8 in its box; relu(sum − 1.5)."""
    net = lead_net(linear([[1.0] * 4], [-1.5]), nn.ReLU())
    found = crown(eps=0.2, norm="l2")(net, torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64))
    assert found.lower.item() == pytest.approx(1 / (1 + math.exp(-0.1)), abs=1e-9)
    assert found.upper.item() == pytest.approx(1 / (1 + math.exp(-0.9)), abs=1e-9)


def test_a_max_pool_s_bounds_by_hand():
    """Of a and b in [0, 1]·x: above, t + chords or the constant; below, the one with the larger bound.

    a = x in [.2, .6], b = .8 − x in [.2, .6]: t = .2, chords a + b − .2 = .6 = the constant.
    With b = .5 − x/4 in [.35, .45]: t = .35, (.25/.4)(x − .2) + (b − .35) + .35 is .525 at the centre.
    """
    for (slope, shift), high, low in [((-1.0, 0.8), 0.6, 0.2), ((-0.25, 0.5), 0.6, 0.35)]:
        pool = nn.Sequential(linear([[1.0], [slope]], [0.0, shift]), Side())
        net = lead_net(pool, nn.MaxPool2d((1, 2)), nn.Flatten())
        x = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
        network, _ = read(net, x, READERS)
        bounds = Bounds.by_crown(network, Linf(x, 0.2))
        one = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
        top, bottom = (
            -bounds.of_logits(-one, through=True).item(),
            bounds.of_logits(one, through=True).item(),
        )
        assert (top, bottom) == (pytest.approx(high, abs=1e-12), pytest.approx(low, abs=1e-12))


@pytest.mark.parametrize("make", [ibp, crown])
def test_margins_that_cannot_be_low_at_once_are_bounded_together(make):
    """z = (3, 5t, −5t), |t| <= .2: e^(5t) + e^(−5t) is at most e + 1/e, while each alone reaches e."""
    net = nn.Sequential(nn.Flatten(), linear([[0.0], [5.0], [-5.0]], [3.0, -2.0, 2.0]))
    found = make(eps=0.2)(net, torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64))
    assert found.lower.item() == pytest.approx(1 / (1 + math.exp(-3) * (math.e + 1 / math.e)), abs=1e-12)


def least_by_milp(weights, biases, low, high, objective):
    """The least objective · z over a box, z of Linear-ReLU-...-Linear, with a 0/1 number for each ReLU."""
    sizes = [len(low)]
    for w in weights:
        sizes += [len(w)] * (3 if w is not weights[-1] else 1)  # before, after, on or off
    at = np.cumsum([0, *sizes])
    total, rows, lower, upper = at[-1], [], [], []
    bounds = np.full((total, 2), [-np.inf, np.inf])
    bounds[: len(low)] = np.stack([low, high], axis=1)
    integral, source = np.zeros(total), 0
    reach_low, reach_high = low, high

    def say(entries, least, most):
        row = np.zeros(total)
        for column, value in entries:
            row[column] += value
        rows.append(row)
        lower.append(least)
        upper.append(most)

    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        before = at[1 + 3 * k]
        middle, half = (reach_low + reach_high) / 2, (reach_high - reach_low) / 2
        lo, hi = w @ middle + b - abs(w) @ half, w @ middle + b + abs(w) @ half
        for i in range(len(w)):
            say([(source + j, w[i, j]) for j in range(w.shape[1])] + [(before + i, -1)], -b[i], -b[i])
            if k == len(weights) - 1:
                continue
            after, on = before + len(w) + i, before + 2 * len(w) + i
            bounds[after], bounds[on], integral[on] = (0, np.inf), (0, 1), 1
            big_low, big_high = min(lo[i], 0), max(hi[i], 0)
            say([(after, 1), (before + i, -1)], 0, np.inf)
            say([(after, 1), (before + i, -1), (on, -big_low)], -np.inf, -big_low)
            say([(after, 1), (on, -big_high)], -np.inf, 0)
        source = before + len(w)
        reach_low, reach_high = np.maximum(lo, 0), np.maximum(hi, 0)
    cost = np.zeros(total)
    cost[at[-2] :] = objective
    found = optimize.milp(
        cost,
        constraints=optimize.LinearConstraint(np.array(rows), lower, upper),
        bounds=optimize.Bounds(*bounds.T),
        integrality=integral,
        options={"mip_rel_gap": 0},
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("seed", range(8))
def test_a_tiny_relu_net_s_margins_lie_within_what_an_integer_program_proves(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
        ).double()
    x, eps = images(1, seed, (1, 2, 2)), 0.05 * (1 + seed % 3)
    layers = [net[i] for i in (1, 3, 5)]
    weights, biases = (
        [v.detach().numpy() for v in vs] for vs in zip(*[(m.weight, m.bias) for m in layers], strict=True)
    )
    y = int(net(x).argmax())
    lead = np.array([1.0, -1.0]) * (1 if y == 0 else -1)
    flat = x.flatten().numpy()
    low, high = np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)
    true = (
        least_by_milp(weights, biases, low, high, lead),
        -least_by_milp(weights, biases, low, high, -lead),
    )
    exact = 1 / (1 + math.exp(-true[0])), 1 / (1 + math.exp(-true[1]))
    for make in (ibp, crown):
        found = make(eps=eps)(net, x)
        assert found.lower.item() <= max(exact[0], 0.5) + 1e-9 and found.upper.item() >= exact[1] - 1e-9
    narrow = crown(eps=eps)(net, x)
    assert narrow.lower.item() > max(exact[0], 0.5) - 0.05  # and not far off

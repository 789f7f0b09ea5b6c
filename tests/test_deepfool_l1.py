"""DeepFool in L1, against a solver of linear programs: the nearest point of a boundary within [0, 1]."""

import math

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from nets import Counting, Linear, conv_net, images, predictions
from poise.attacks.deepfool import deepfool, pixel_by_pixel

each_seed = pytest.mark.parametrize("seed", range(3))


def l1(delta):
    return delta.double().flatten(1).abs().sum(dim=1)


def cheapest(slopes, need, x):
    """The least Σ|d_i| with slopes · d = need and x + d in [0, 1], or infinity."""
    room = [(0, float(1 - v)) for v in x] + [(0, float(v)) for v in x]  # up and down
    both = torch.cat([slopes, -slopes]).numpy()
    found = linprog([1.0] * len(both), A_ub=-both[None], b_ub=[-need], bounds=room)
    return found.fun if found.success else math.inf


@pytest.mark.parametrize("seed", range(20))
def test_the_step_is_the_linear_program_s(seed):
    numbers = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 1, 2, 3, generator=numbers, dtype=torch.float64)
    x[:, 0, 0, :2] = torch.tensor([0.0, 1.0])  # pixels with no room on one side
    slopes = torch.randn(4, 1, 2, 3, generator=numbers, dtype=torch.float64)
    most = (slopes * torch.where(slopes > 0, 1 - x, -x)).flatten(1).sum(dim=1)
    need = most * torch.tensor([0.05, 0.4, 0.9, 1.1])  # the last is out of reach
    step, largest, far = pixel_by_pixel(slopes, need, x)
    assert torch.equal(largest, slopes.flatten(1).abs().amax(dim=1))
    assert ((x + step >= 0) & (x + step <= 1)).all()
    expected = [cheapest(slopes[i].flatten(), float(need[i]), x[i].flatten()) for i in range(4)]
    assert far[:3].tolist() == pytest.approx(expected[:3]) and math.isinf(expected[3]) and far[3] == 1e6
    torch.testing.assert_close(l1(step)[:3], far[:3])
    torch.testing.assert_close((slopes * step).flatten(1).sum(dim=1), need.minimum(most))


@each_seed
@pytest.mark.parametrize("classes", [2, 7])
def test_a_linear_boundary_is_crossed_in_one_step_at_the_least_distance(classes, seed):
    numbers = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).double().requires_grad_(False)
    net[1].weight.copy_(torch.randn(classes, 12, generator=numbers))
    x = torch.rand(12, 3, 2, 2, generator=numbers, dtype=torch.float64)
    net[1].bias.copy_(-net[1].weight @ x.mean(dim=0).flatten())
    z, w = net(x), net[1].weight
    y = z.argmax(dim=1)
    nearest = [
        min(
            cheapest(w[k] - w[y[i]], float(z[i, y[i]] - z[i, k]), x[i].flatten())
            for k in range(classes)
            if k != y[i]
        )
        for i in range(12)
    ]
    assert sum(math.isfinite(d) for d in nearest) == 12
    x_adv = deepfool(norm="l1", overshoot=0.0)(net, x, y)
    assert (predictions(net, x_adv) != y).all()
    assert l1(x_adv - x).tolist() == pytest.approx(nearest, rel=1e-6)
    counting = Counting(net)
    further = l1(deepfool(norm="l1", overshoot=0.02)(counting, x, y) - x)
    assert counting.forwards == 2 and counting.backwards == classes - 1
    assert (further <= 1.02 * l1(x_adv - x) + 1e-9).all() and (further > l1(x_adv - x)).all()


def test_one_pixel_moves_where_it_has_the_room():
    weight = torch.tensor([1.0, -3.0, 2.0, 0.5], dtype=torch.float64).reshape(1, 2, 2)
    net = Linear(weight, bias=1.1)  # 1.1 at grey images: 3 · 0.3667 on the second pixel alone
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x_adv = deepfool(norm="l1", overshoot=0.0)(net, x)
    change = (x_adv - x).flatten()
    assert change.tolist() == pytest.approx([0, (1.1 + 0.25) / 3, 0, 0])  # 0.5 · (1 − 3 + 2 + 0.5) = 0.25


@each_seed
def test_l1_points_are_nearer_in_l1_and_in_fewer_pixels_than_l2_points(seed):
    net, x = conv_net(seed), images(24, seed + 10)
    sparse, round_ = (deepfool(norm=norm)(net, x) for norm in ("l1", "l2"))
    assert (predictions(net, sparse) != predictions(net, x)).all()
    assert (l1(sparse - x) < l1(round_ - x)).all()
    pixels = (sparse != x).flatten(1).sum(dim=1).double()
    assert pixels.median() < 0.2 * x[0].numel()


def test_eps_is_in_l1():
    net, x = conv_net(), images(12)
    free = deepfool(norm="l1")(net, x)
    eps = l1(free - x).median().item() * 1.001
    within = (l1(free - x) <= eps)[:, None, None, None]
    assert torch.equal(deepfool(norm="l1", eps=eps)(net, x), torch.where(within, free, x))

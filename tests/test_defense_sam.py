"""SAM: by hand, by finite differences at the shifted weights, and what it must leave alone."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from defense_nets import GREY, ZERO, along, close, directions, generator, smooth_batch, smooth_net
from poise import InputError, defenses


class Sigmoid(nn.Module):
    """Logits (w·v, 0): the probability of class 0 is the sigmoid of the product of two weights."""

    def __init__(self, w, v):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (w, v))

    def forward(self, x):
        return torch.stack([(self.w * self.v).expand(len(x)), torch.zeros(len(x), dtype=x.dtype)], dim=1)


def test_sam_by_hand():
    """g = −¼·(v, w) at w = v = √log 3; the shift is −rho/√2 in both, and the gradient that at w + e."""
    root, rho = math.sqrt(math.log(3)), 0.1
    net = Sigmoid(root, root)
    loss = defenses.sam(rho=rho)(net, GREY, ZERO)
    shifted = root - rho / math.sqrt(2)
    close(loss, math.log(1 + math.exp(-(shifted**2))))
    loss.backward()
    close(net.w.grad, -shifted / (1 + math.exp(shifted**2)))


def test_sam_s_gradient_is_that_at_the_shifted_weights_by_finite_differences():
    net, (x, y), h = smooth_net(), smooth_batch(), 1e-5
    way = directions(net, 5)
    F.cross_entropy(net(x), y).backward()
    grads = [parameter.grad for parameter in net.parameters()]
    length = math.sqrt(sum(grad.square().sum().item() for grad in grads))
    shifted = along(smooth_net(), [grad / length for grad in grads], 0.3)
    high, low = (F.cross_entropy(along(shifted, way, s * h)(x), y).item() for s in (1, -1))
    net.zero_grad()
    loss = defenses.sam(rho=0.3)(net, x, y)
    close(loss, F.cross_entropy(shifted(x), y).item())
    loss.backward()
    slope = sum((p.grad * d).sum().item() for p, d in zip(net.parameters(), way, strict=True))
    assert slope == pytest.approx((high - low) / (2 * h), rel=1e-6)


def test_sam_s_batch_norm_statistics_are_those_of_a_plain_step():
    plain, sharp = smooth_net(), smooth_net()
    defenses.vanilla()(plain, *smooth_batch())
    defenses.sam(rho=5.0)(sharp, *smooth_batch())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, dict(sharp.named_buffers())[name]), name


def test_sam_without_rho_is_vanilla_and_frozen_weights_stay():
    x, y = smooth_batch()
    close(defenses.sam(rho=0.0)(smooth_net(), x, y), defenses.vanilla()(smooth_net(), x, y).item())
    net = smooth_net()
    net[0].requires_grad_(False)
    assert set(defenses.sam().shifted(net, x, y)) == set(net.parameters()) - set(net[0].parameters())
    loss = defenses.sam(rho=0.5)(net, x, y)
    loss.backward()
    assert net[0].weight.grad is None and net[4].weight.grad is not None


def test_sam_refuses_what_has_no_weights():
    with pytest.raises(InputError, match="Module"):
        defenses.sam()(lambda x: x.flatten(1), *smooth_batch())
    with pytest.raises(InputError, match="gradient"):
        defenses.sam()(smooth_net().requires_grad_(False), *smooth_batch())


def test_sam_shifts_a_weight_that_two_layers_share_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x.flatten(1)))

    net, (x, y) = Twice().double(), smooth_batch()
    x = x[:, :, :2, :2]
    (shifted,) = defenses.sam(rho=0.5).shifted(net, x, y).values()
    loss = defenses.sam(rho=0.5)(net, x, y)
    close(loss, F.cross_entropy(x.flatten(1) @ shifted.T @ shifted.T, y).item())


@pytest.mark.parametrize("name", ["sam", "trades", "uat-mix"])
def test_a_fabric_module_gets_the_same_gradient(name):
    found = []
    for wrap in (False, True):
        net = smooth_net()
        fabric = Fabric(accelerator="cpu", devices=1)
        model = fabric.setup(net) if wrap else net
        defenses.build(name)(model, *smooth_batch(), generator()).backward()
        found.append([parameter.grad for parameter in net.parameters()])
        assert net[1].num_batches_tracked == 1
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)

"""Interval training: the loss by hand on a linear net, and as what certificates say of others."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from certify_nets import images, random_net
from poise import InputError, certify
from poise.defenses import ibp


def test_on_a_linear_net_the_worst_margin_is_the_margin_less_eps_times_the_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 3)).double()
    x, y = images(5, 0) * 0.5 + 0.25, torch.tensor([0, 1, 2, 0, 1])
    w, z = net[1].weight, net(x)
    apart = (w[y][:, None] - w).abs().sum(dim=2)  # (n, 3), 0 at y itself
    worst = z - z.gather(1, y[:, None]) + 0.1 * apart
    expected = 0.25 * F.cross_entropy(z, y) + 0.75 * F.cross_entropy(worst, y)
    found = ibp(eps=0.1, clean=0.25)(net, x, y)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(loss, list(net.parameters())) for loss in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("seed", range(8))
def test_the_worst_loss_is_minus_the_logarithm_of_what_intervals_certify(seed):
    """For the predicted class and without the joint row, which can only add to the certificate."""
    net, x = random_net(seed), images(1, seed)
    certified = certify.ibp(eps=0.003)(net, x).lower.item()
    p = torch.exp(-ibp(eps=0.003, clean=0.0)(net, x, net(x).argmax(dim=1))).item()
    assert p <= certified + 1e-12
    if len(net[-1].bias) == 2 and p > 0.5:
        assert p == pytest.approx(certified, abs=0.02)


def test_the_first_quarter_of_the_warm_up_is_clean_and_then_both_weights_move():
    net, x = random_net(0), images(4, 0)
    y = torch.arange(4) % len(net[-1].bias)
    full = ibp(eps=0.1, clean=0.5)
    clean = F.cross_entropy(net(x), y)
    for eps in (0.001, 0.025):
        torch.testing.assert_close(dataclasses.replace(full, eps=eps)(net, x, y), clean)
    half = dataclasses.replace(full, eps=0.0625)(net, x, y)  # half of the rest: radius .05, κ = .75
    worst = ibp(eps=0.05, clean=0.0)(net, x, y)
    torch.testing.assert_close(half, 0.75 * clean + 0.25 * worst)


def test_batch_norm_in_training_goes_by_the_clean_batch():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(98, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    x, y = images(6, 0), torch.arange(6) % 3
    torch.testing.assert_close(
        ibp(eps=0.0, clean=0.0)(net, x, y), F.cross_entropy(net(x), y)
    )  # at eps 0 the worst logits are the logits in training


def test_a_layer_that_intervals_do_not_know_is_refused():
    with pytest.raises(InputError, match="cannot read sigmoid"):
        ibp()(
            nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(98, 3)).double(),
            images(2, 0),
            torch.zeros(2).long(),
        )
    with pytest.raises(InputError, match=r"dropout.*p=0"):
        ibp()(
            nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(98, 3)).double(),
            images(2, 0),
            torch.zeros(2).long(),
        )

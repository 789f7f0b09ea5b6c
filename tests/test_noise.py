"""Noise: on a linear model what each try does is known."""

from __future__ import annotations

import torch

from nets import conv_net, images
from poise.attacks import auto, noise


def linear(x):
    """Two classes; the lead is the sum of pixels less half of them."""
    lead = (x - 0.5).flatten(1).sum(dim=1) + 2.0
    return torch.stack([lead, torch.zeros_like(lead)], dim=1)


def test_every_pixel_moves_by_eps_and_one_of_two_signs_is_the_best_on_one_pixel():
    x = torch.linspace(0.4, 0.6, 64).reshape(-1, 1, 1, 1)
    moved = noise(eps=0.125, tries=1)(linear, x) - x
    down = moved < -0.1  # a try upwards is worse than x, which stays
    assert torch.allclose(moved, torch.where(down, -0.125, 0.0), atol=1e-6)
    assert 16 < int(down.sum()) < 48


def test_more_tries_never_find_less_and_an_attack_finds_more():
    net, x = conv_net(0), images(32, 3)
    top = [
        net(attack(net, x)).softmax(dim=1).amax(dim=1)
        for attack in (noise(eps=0.1, tries=2), noise(eps=0.1, tries=20), auto(eps=0.1))
    ]
    assert (top[1] <= top[0]).all() and (top[1] < top[0]).any()
    assert top[2].mean() < top[1].mean()


def test_draws_are_the_generators():
    net, x = conv_net(0), images(8, 4)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 0, 1)]
    first, same, other = (noise(eps=0.1)(net, x, generator=g) for g in seeds)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_model_of_arrays_and_no_gradients_will_do():
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert noise(eps=0.1)(lambda x: linear(x).detach().numpy(), x).shape == x.shape

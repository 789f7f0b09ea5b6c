"""Fingerprints: whatever changes the answers changes them, and nothing else does."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poise import models
from poise.models import fingerprint


class Own(nn.Module):
    """A net with all that a user may keep beside its weights."""

    def __init__(self, **changes):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale, self.name, self.flag = 1.0, "relu", False
        self.mean, self.std = torch.tensor([0.5]), np.array([0.25])
        self.sizes, self.table = [1, (2, 3)], {"a": {"b": 1}}
        self.act, self.curve = F.relu, functools.partial(F.leaky_relu, negative_slope=0.1)
        self.hidden = [nn.Linear(1, 1)]
        with torch.no_grad():
            for parameter in (*self.fc.parameters(), *self.hidden[0].parameters()):
                parameter.fill_(0.5)
        self.register_buffer("offset", torch.zeros(1), persistent=False)
        self.itself = self.loop = [self]
        for key, value in changes.items():
            setattr(self, key, value)


def filled(value):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, 0.5)
    return layer


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 2.0},
        {"name": "gelu"},
        {"flag": True},
        {"mean": torch.tensor([0.4])},
        {"std": np.array([0.5])},
        {"sizes": [1, (2, 4)]},
        {"table": {"a": {"b": 2}}},
        {"act": F.gelu},
        {"curve": functools.partial(F.leaky_relu, negative_slope=0.2)},
        {"hidden": [filled(0.7)]},
        {"offset": torch.ones(1)},
        {"more": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_a_net_computes_with_is_in_its_fingerprint(changes):
    assert fingerprint(Own()) == fingerprint(Own())
    assert fingerprint(Own(**changes)) != fingerprint(Own())


@pytest.mark.parametrize("other", [nn.Tanh(), nn.ReLU6(), nn.LeakyReLU()])
def test_layers_without_weights_are_in_it(other):
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(other))


def test_settings_of_layers_are_in_it():
    assert fingerprint(nn.BatchNorm2d(2)) != fingerprint(nn.BatchNorm2d(2, eps=1e-3))
    assert fingerprint(nn.LeakyReLU(0.1)) != fingerprint(nn.LeakyReLU(0.2))


def test_normalisation_is_in_it():
    net = nn.Identity()
    first = models.Classifier(models.Normalize([0.5], [0.25]), net)
    assert fingerprint(models.Classifier(models.Normalize([0.5], [0.5]), net)) != fingerprint(first)
    assert fingerprint(models.Classifier(models.Normalize([0.5], [0.25]), net)) == fingerprint(first)


def test_use_does_not_change_it():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)).eval()
    before = fingerprint(net)
    handle = net.register_forward_hook(lambda *_: None)
    net(torch.rand(3, 1, 2, 2)).sum().backward()
    handle.remove()
    assert fingerprint(net) == before
    net.train()
    assert fingerprint(net) == before
    assert fingerprint(net.eval().requires_grad_(False)) == before


def test_scripted_nets_are_told_apart_by_their_code():
    def scripted(act):
        return torch.jit.trace(nn.Sequential(act), torch.rand(1, 2), check_trace=False)

    assert fingerprint(scripted(nn.ReLU())) == fingerprint(scripted(nn.ReLU()))
    assert fingerprint(scripted(nn.ReLU())) != fingerprint(scripted(nn.Tanh()))

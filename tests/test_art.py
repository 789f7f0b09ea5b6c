"""Against the Adversarial Robustness Toolbox, on trained nets: PGD bit for bit, DeepFool by its lengths."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nets import predictions
from poise.attacks import deepfool, pgd
from real_nets import EPS, NETS


def wrapped(net, x):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("name", NETS)
def test_pgd(shared_data, name, steps):
    """32 images: their mean loss differs from our sum by an exact factor."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    net, x, y = NETS[name](shared_data, 32)
    eps = EPS[name]
    options = {"eps": eps, "eps_step": eps / 4, "max_iter": steps, "batch_size": len(x), "verbose": False}
    theirs = ProjectedGradientDescentPyTorch(wrapped(net, x), **options).generate(x.numpy(), y.numpy())
    ours = pgd(eps=eps, step=eps / 4, steps=steps)(net, x, y)
    assert not torch.equal(ours, x)
    # They add the change to x, which passes eps by a rounding; that can turn the sign of a gradient near 0.
    apart = (ours - torch.from_numpy(theirs)).abs() > 2e-7
    assert apart.double().mean() < 0.01


def test_deepfool(shared_data):
    """Theirs stops at a first loss of the whole batch, ours image by image: one at a time, they agree."""
    from art.attacks.evasion import DeepFool

    net, x, y = NETS["cifar10"](shared_data, 10)
    y = predictions(net, x)
    options = {"max_iter": 50, "epsilon": 0.02, "nb_grads": 10, "batch_size": 1, "verbose": False}
    theirs = DeepFool(wrapped(net, x), **options).generate(x.numpy(), np.eye(10, dtype="f4")[y.numpy()])
    lengths = []
    for x_adv in (deepfool()(net, x, y), torch.from_numpy(theirs)):
        lost = predictions(net, x_adv) != y
        lengths.append((x_adv - x).flatten(1).norm(dim=1).where(lost, math.inf))
    ours, theirs = lengths
    assert ours.isfinite().sum() >= theirs.isfinite().sum() > 5
    both = ours.isfinite() & theirs.isfinite()
    assert abs(ours[both].mean() / theirs[both].mean() - 1) < 0.05

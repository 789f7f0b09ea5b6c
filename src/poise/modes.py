"""Borrow a model: evaluation mode and gradients while in use, copies for images, all given back after."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from poise.shapes import Images, Model


def ask(model: Model, x: Images) -> Any:
    """The model's answer at a copy of the images, itself a copy: how all of poise calls a model.

    A model may write into its input, or give all its answers in one buffer that it fills again.

    >>> x = torch.ones(1, 1, 1, 2)
    >>> ask(lambda x: x.mul_(0.5).flatten(1), x).tolist(), x.flatten().tolist()
    ([[0.5, 0.5]], [1.0, 1.0])
    """
    out: Any = model(x.clone())
    if isinstance(out, torch.Tensor):
        return out.clone()
    return out.copy() if isinstance(out, np.ndarray) else out


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put every submodule in evaluation mode, and give each its own flag back.

    `model.train()` as a way back would thaw layers that the caller had frozen by hand.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1).eval())
    >>> with evaluating(net):
    ...     net[0].training
    False
    >>> net[0].training, net[1].training
    (True, False)
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if getattr(module, "training", False)]  # a frozen one has none
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def differentiable(model: Model) -> Iterator[None]:
    """Evaluation mode with gradients on, also inside `no_grad` and `inference_mode`."""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        yield

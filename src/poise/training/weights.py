"""Which weights train and how: what is frozen, what decays, their running average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from poise import labels, models
from poise.checks import InputError
from poise.train_job import TrainJob


def freeze(net: nn.Module, what: str) -> None:
    """Take a submodule out of training, its running statistics too; "backbone" is all but the head.

    Raises:
        InputError: no such submodule, or nothing left to train.
    """
    if what == "backbone":
        frozen: list[nn.Module] = [net]
    elif what in (named := dict(net.named_modules())) and what:
        frozen = [named[what]]
    else:
        known = ", ".join(["backbone", *(name for name, _ in net.named_children())])
        raise InputError(f"freeze must name a submodule, got {what!r} (known: {known})")
    for module in frozen:
        module.eval().requires_grad_(False)
    if what == "backbone":
        models.head(net)[1].train().requires_grad_(True)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise InputError(f"freeze={what!r} leaves nothing to train")


@torch.no_grad()
def align_head(net: nn.Module, classes: Sequence[str]) -> None:
    """Bring the rows of the head that was loaded into the order of the classes; of others, it starts anew.

    A head whose classes have no names stays as it is.
    """
    names = labels.names_of(net)
    if names is not None and len(names) == len(classes) and names != tuple(classes):
        layer = models.head(net)[1]
        try:
            order = labels.match(classes, names, outputs=len(names))
        except InputError:
            getattr(layer, "reset_parameters", lambda: None)()
        else:
            for parameter in layer.parameters():
                parameter.copy_(parameter[list(order)])
    models.with_names(net, classes)


def optimizer_of(net: nn.Module, job: TrainJob) -> torch.optim.Optimizer:
    """The job's optimizer; without `decay_norms`, tensors of one dimension do not decay.

    Those are the biases, and the scales of normalisation layers.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, object]] = [{"params": trained}]
    if not job.decay_norms:
        flat = [p for p in trained if p.ndim < 2]
        groups = [{"params": [p for p in trained if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if job.optimizer == "adamw":
        betas = (job.momentum, 0.999)
        return torch.optim.AdamW(groups, job.lr, betas=betas, weight_decay=job.weight_decay)
    return torch.optim.SGD(groups, job.lr, job.momentum, weight_decay=job.weight_decay, nesterov=True)


@torch.no_grad()
def average(shadow: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the net after a step: e <- d e + (1 - d) w, running statistics too.

    d = min(decay, (1 + t) / (10 + t)) at step t, from 0 (as TensorFlow's ExponentialMovingAverage): a
    fixed decay of .999 would still hold the first, random weights after some hundred steps.

    >>> shadow, net = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = shadow.weight.data.fill_(1.0), net.weight.data.fill_(2.0)
    >>> average(shadow, net, 0.999, 0)
    >>> round(shadow.weight.item(), 6)
    1.9
    """
    decay = min(decay, (1 + step) / (10 + step))
    for ours, new in zip(_state(shadow), _state(net), strict=True):
        if ours.is_floating_point():
            ours.lerp_(new, 1 - decay)
        else:
            ours.copy_(new)


def _state(net: nn.Module) -> Iterator[Tensor]:
    yield from net.parameters()
    yield from net.buffers()

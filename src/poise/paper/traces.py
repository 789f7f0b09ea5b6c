"""The walk of single images through the probabilities (Figure S1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from poise.attacks import Attack, Descent
from poise.checks import InputError, check_count, check_labels
from poise.report.paper_figures import Trace, oscillations
from poise.shapes import Images, Labels, Model


def traces(
    net: Model, x: Images, attack: Attack, *, y: Labels | None = None, seed: int = 0
) -> Float[Tensor, "n t k"]:
    """The probabilities at every point where the images stand, (n, steps + 1, k), on the CPU.

    Under the rule `Always` (PGD, Dropout) those are the points tried. Under a step-back rule an
    image whose step was taken back stands where it stood, so its top class does not change by
    construction: there `regained` tells how calm the walk is.

    Args:
        net: images in [0, 1] -> logits.
        x: images, on the net's device.
        attack: one that walks by `Descent`: pgd, dropout, adaptive, confsmooth, ...
        y: labels (n,), for an attack against the true label.
        seed: of the attack's draws; with that of `poise.evaluate` it is the same walk.

    Raises:
        InputError: an attack without such a walk or without steps, or no images.
    """
    if not isinstance(attack, Descent):
        raise InputError(
            f"a trace needs an attack that walks step by step (Descent), got {type(attack).__name__}: "
            "take pgd, dropout, adaptive or confsmooth as they are"
        )
    check_count("steps", attack.steps, 1)
    if len(x) == 0:
        raise InputError("there are no images to trace: x is empty")
    generator = torch.Generator().manual_seed(seed)
    points = attack.path(net, x, y, generator=generator)
    return torch.stack([at.logits.softmax(dim=1) for at in points], dim=1).cpu()


def trace(net: Model, x: Images, attack: Attack, *, y: Labels | None = None, seed: int = 0) -> Trace:
    """The probabilities (steps + 1, k) of one image x (1, c, h, w), as `traces` gives them.

    Raises:
        InputError: more than one image, or what `traces` refuses.
    """
    if len(x) != 1:
        raise InputError(f"trace takes one image, shape (1, c, h, w), got {tuple(x.shape)}: use traces")
    return traces(net, x, attack, y=y, seed=seed)[0]


def most_oscillating(walks: Float[Tensor, "n t k"], y: Labels) -> int:
    """The image to show: of the right answers, the one whose top class changes most often.

    The first of them where several do alike. Meant for the walks under Dropout, so that the
    picture shows the strongest case of what the paper describes, by rule and not by taste.

    >>> calm, restless = [[0.9, 0.1]] * 3, [[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]]
    >>> most_oscillating(torch.tensor([calm, restless, restless]), torch.tensor([0, 0, 0]))
    1

    Raises:
        InputError: none of the answers is right.
    """
    check_labels(y, len(walks))
    y = y.to(walks.device)
    right = walks[:, 0].argmax(dim=1) == y
    if not right.any():
        raise InputError("none of the images is classified rightly, so there is none to show: take more")
    changes = torch.tensor([oscillations(walk) for walk in walks], device=walks.device)
    return int(torch.where(right, changes, -1).argmax())

"""Confidence against budget: curves over ε, and the least ε at which the confidence falls below τ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from poise.attacks import Attack
from poise.attacks.common import check_inputs, clean_logits, label_and_top
from poise.certify import Certificate
from poise.checks import InputError, check_count, check_number
from poise.objectives import MARGIN
from poise.shapes import Images, Labels, Mask, Model, PerSample
from poise.threat import between


def confidence_curve(
    model: Model,
    x: Images,
    attack: Callable[[float], Attack],
    epsilons: Sequence[float],
    *,
    y: Labels | None = None,
) -> Float[Tensor, "n e"]:
    """The lowest confidence (n, e) that the attack reaches within each budget, the label kept.

    Judged by forwards of its own. The balls lie in one another, so a smaller budget's point counts
    for a larger one too: a row never rises.

    Args:
        model: images in [0, 1] -> logits.
        x: images (n, c, h, w).
        attack: makes the attack of a budget, e.g. `lambda eps: poise.attacks.auto(eps=eps)`.
        epsilons: the budgets, rising.
        y: labels to keep; by default the predictions.

    Raises:
        InputError: budgets that do not rise, or what the attack refuses.
    """
    _check_rising(epsilons)
    x, y = check_inputs(x, y)
    logits = clean_logits(model, x, y)
    y = logits.argmax(dim=1) if y is None else y
    lowest, columns = logits.softmax(dim=1).amax(dim=1), []
    for eps in epsilons:
        kept, top = label_and_top(model, attack(eps)(model, x, y), y, MARGIN)
        lowest = torch.where(kept & (top < lowest), top, lowest)
        columns.append(lowest)
    return torch.stack(columns, dim=1)


def minimum_eps(
    model: Model,
    x: Images,
    attack: Callable[[float], Attack],
    epsilons: Sequence[float],
    *,
    threshold: float,
    norm: Callable[[Images, Images], PerSample],
    y: Labels | None = None,
    bisections: int = 8,
) -> PerSample:
    """The length (n,) of the shortest change found that brings the confidence below the threshold.

    The label is kept. Infinite where no budget of the list suffices, 0 where the clean confidence
    is below already. The first point found is drawn towards x by bisections, forwards only.

    Args:
        model: images in [0, 1] -> logits.
        x: images (n, c, h, w).
        attack: makes the attack of a budget.
        epsilons: the budgets to try, rising.
        threshold: the confidence to fall below.
        norm: the length of a change, e.g. `poise.metrics.linf`.
        y: labels to keep; by default the predictions.
        bisections: forwards to shorten each change with.
    """
    _check_rising(epsilons)
    check_number("threshold", threshold, 0, 1)
    check_count("bisections", bisections)
    x, y = check_inputs(x, y)
    logits = clean_logits(model, x, y)
    y = logits.argmax(dim=1) if y is None else y
    shortest = torch.where(logits.softmax(dim=1).amax(dim=1) < threshold, 0.0, torch.inf)
    for eps in epsilons:
        if shortest.isfinite().all():
            break
        found = attack(eps)(model, x, y)
        far, near = torch.ones_like(shortest), torch.zeros_like(shortest)
        below = _below(model, found, y, threshold)
        for _ in range(bisections):
            middle = (near + far) / 2
            enough = _below(model, between(x, found, middle), y, threshold)
            near, far = torch.where(enough, near, middle), torch.where(enough, middle, far)
        length = norm(between(x, found, far), x).to(shortest.dtype)
        shortest = torch.where(below, torch.minimum(shortest, length), shortest)
    return shortest


def certified_curve(
    model: Model,
    x: Images,
    certificate: Callable[..., Certificate],
    epsilons: Sequence[float],
    *,
    threshold: float,
    norm: str = "linf",
) -> Float[Tensor, " e"]:
    """The share (e,) of images whose confidence is certified to stay at the threshold or above, float64.

    Args:
        model: images in [0, 1] -> logits, made of layers that `poise.certify` can read.
        x: images (n, c, h, w).
        certificate: makes the certificate of a budget and norm, e.g. `poise.certify.crown`.
        epsilons: the budgets, rising.
        threshold: the confidence to stay above.
        norm: of the budgets.

    Raises:
        InputError: budgets that do not rise, or what the certificate refuses.
    """
    _check_rising(epsilons)
    check_number("threshold", threshold, 0, 1)
    bounds = (certificate(eps=eps, norm=norm)(model, x).lower for eps in epsilons)
    return torch.stack([(lower >= threshold).double().mean() for lower in bounds])


def _below(model: Model, x: Images, y: Labels, threshold: float) -> Mask:
    kept, top = label_and_top(model, x, y, MARGIN)
    return kept & (top < threshold)


def _check_rising(epsilons: Sequence[float]) -> None:
    if not epsilons or any(a >= b for a, b in pairwise(epsilons)):
        raise InputError(f"epsilons must rise and hold at least one budget, got {list(epsilons)}")

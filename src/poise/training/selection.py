"""Images set aside from training, and which epoch's weights to keep by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poise import attacks
from poise.checks import InputError, NotFiniteError
from poise.data import ImageSet
from poise.modes import ask, evaluating
from poise.shapes import Labels
from poise.training.devices import InPrecision
from poise.training.schedule import budget

if TYPE_CHECKING:
    from poise.training.run import Run

WATCHED = 512  # images looked at after every epoch
STEPS = 5  # of the attacks on them
EPS = 0.03  # the budget to look at where the defense has none: the paper's in evaluation


def split(y: Labels, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a share of every class to validate on, to the nearest image.

    The seed alone draws them; both are in increasing order.

    >>> train, validation = split(torch.tensor([0] * 10 + [1] * 30), 0.1, seed=0)
    >>> len(train), (validation < 10).sum().item(), (validation >= 10).sum().item()
    (36, 1, 3)
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    aside = torch.zeros(len(y), dtype=torch.bool)
    for label in set(y.tolist()):
        members = order[y[order] == label]
        aside[members[: math.floor(share * len(members) + 0.5)]] = True
    if share and not 0 < int(aside.sum()) < len(y):
        raise InputError(f"validation={share:g} of {len(y)} images leaves one of the two parts empty")
    indices = torch.arange(len(y))
    return indices[~aside], indices[aside]


def choose_watched(train: Tensor, validation: Tensor) -> Tensor:
    """The images looked at after every epoch: of the validation images, else a 50th of the others.

    At least 32 and at most 512, evenly spread: looking must stay cheap beside an epoch.
    """
    pool = validation if len(validation) else train
    many = len(pool) if len(validation) else max(32, len(pool) // 50)
    many = min(many, WATCHED, len(pool))
    return pool[torch.arange(many) * len(pool) // many]


def measure(
    model: nn.Module, data: ImageSet, images: Tensor, eps: float, which: Sequence[str]
) -> dict[str, float]:
    """Shares and means over the images with these indices, by the names of `select`.

    "accuracy": right answers; "pgd": right answers under PGD; "confsmooth": mean over all images of the
    confidence after ConfSmooth, a wrong answer counting as 0, so that no right answer is too unsure to
    be worth having; "confidence": the same over the images answered right alone, 0 where none is. NaN
    for a model that cannot be attacked. Step sizes go with eps, so that either attack reaches the
    border of any ball.
    """
    device = next(model.parameters()).device
    sums = dict.fromkeys([*which, "right"], 0.0)
    try:
        for x, y in data.batches(images):
            for name, value in _counts(model, x.to(device), y.to(device), eps, which).items():
                sums[name] += value
    except NotFiniteError:
        return dict.fromkeys(which, math.nan)
    right = max(1.0, sums["right"])
    return {name: sums[name] / (right if name == "confidence" else len(images)) for name in which}


def best_epoch(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equals; NaN is below every number.

    >>> best_epoch([0.5, float("nan"), 0.7, 0.7])
    2
    """
    known = [-math.inf if math.isnan(score) else score for score in scores]
    return known.index(max(known))


def judge(run: Run) -> dict[str, Any]:
    """Accuracy, accuracy under PGD, confidence under ConfSmooth; of which images; the score, if any.

    Of a frozen backbone accuracy alone: its epochs are forwards, and attacks would cost more than they.
    """
    job, net = run.job, run.candidate
    which = ["accuracy"] if job.freeze == "backbone" else ["accuracy", "pgd", "confidence"]
    which += [job.select] if job.select == "confsmooth" else []
    model = net if job.precision == "32-true" else InPrecision(net, run.fabric)
    own = budget(run.defense, linf=True)
    eps = EPS if own is None else own
    few = choose_watched(run.train, run.validation)
    found = measure(model, run.data, few, eps, which)
    row: dict[str, Any] = {
        "watched": "validation" if len(run.validation) else "train",
        "accuracy": found["accuracy"],
        "pgd_accuracy": found.get("pgd"),
        "confidence": found.get("confidence"),
    }
    if job.select == "last":
        return row
    if job.select not in found or len(few) < len(run.validation):
        found = measure(model, run.data, run.validation, eps, (job.select,))
    return row | {"score": found[job.select]}


def _counts(model: nn.Module, x: Tensor, y: Labels, eps: float, which: Sequence[str]) -> dict[str, float]:
    with evaluating(model):
        answers = _logits(model, x).argmax(dim=1)
        counts = {"right": (answers == y).sum()}
        if "accuracy" in which:
            counts["accuracy"] = counts["right"]
        if "pgd" in which:
            moved = attacks.pgd(eps=eps, step=2.5 * eps / STEPS, steps=STEPS)(model, x, y)
            counts["pgd"] = (_logits(model, moved).argmax(dim=1) == y).sum()
        if {"confsmooth", "confidence"} & {*which}:
            moved = attacks.confsmooth(eps=eps, step=5 * eps / 8, steps=STEPS)(model, x, answers)
            confidence = _logits(model, moved).softmax(dim=1).amax(dim=1)
            counts["confsmooth"] = counts["confidence"] = (confidence * (answers == y)).sum()
    return {name: float(counts[name]) for name in ("right", *which)}


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = ask(model, x)
    return logits

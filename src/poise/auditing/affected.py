"""The images that lose the most confidence, with what was done to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from poise.auditing.answers import Evidence
from poise.auditing.suite import Part
from poise.data import ImageSet
from poise.data.pictures import Pictures
from poise.evaluation import evaluate

MOST = 10  # images of a model


@dataclass(frozen=True, eq=False)
class Affected:
    """One of the most affected images.

    Attributes:
        file: its name, or what tells it from the others.
        label: the true class.
        answer: the model's, which the change keeps.
        before, after: its confidence.
        clean, attacked: pixels (c, h, w) in [0, 1].
    """

    file: str
    label: str
    answer: str
    before: float
    after: float
    clean: ArrayLike
    attacked: ArrayLike


def most_affected(evidence: Evidence, eps: float, *, n: int = MOST) -> NDArray[np.int64]:
    """The places of the right answers that lose the most confidence, the largest loss first."""
    loss = evidence.clean.top - evidence.lowest[eps].top
    order = np.argsort(-loss, kind="stable")
    return np.asarray(order[(evidence.right & (loss > 0))[order]][:n])


def attack_again(
    net: nn.Module, data: ImageSet, evidence: Evidence, parts: Sequence[Part], *, seed: int
) -> list[Affected]:
    """The most affected images, each attacked once more by what found its worst case.

    Args:
        net: on its device.
        data: all images of the evidence, their labels in the net's order.
        evidence: what was seen of the net.
        parts: the suite that made it.
        seed: of the attacks' draws, which belong to the images: what is found is what was found.
    """
    places, clean = most_affected(evidence, evidence.epsilons[-1]), evidence.clean
    under = [part for part in parts if part.what == "under"]
    seen = [seen for eps in evidence.epsilons for seen in evidence.under[eps]]
    kept = [np.where(of.answer == clean.answer, of.top, np.inf)[places] for of in seen]
    best, found = np.argmin(kept, axis=0) if len(places) else places, {}
    for which in np.unique(best):
        chosen = places[best == which]
        few = data.take(torch.from_numpy(chosen))
        records = evaluate(net, few, under[which].attack, seed=seed, examples=len(chosen))
        before, after = (probs.amax(dim=1).tolist() for probs in (records.clean, records.attacked))
        for i, place in enumerate(chosen):
            found[place] = Affected(
                name_of(few, i, f"image {place + 1} of {len(data)}"),
                evidence.classes[evidence.y[place]],
                evidence.classes[clean.answer[place]],
                before[i],
                after[i],
                records.x[i].numpy(),
                records.x_adv[i].numpy(),
            )
    return [found[place] for place in places]


def name_of(data: ImageSet, place: int, otherwise: str) -> str:
    """The name of an image's file with its folder's, where it has one."""
    pictures = data.origin or data.pixels
    if not isinstance(pictures, Pictures):
        return otherwise
    return "/".join(pictures.source.name(int(pictures.index[place])).strip("'\"").split("/")[-2:])

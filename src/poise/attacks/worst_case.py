"""The worst of several attacks, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.attacks.common import accepted, judged, rejudged, standing
from poise.attacks.descent import Attack, Descent
from poise.checks import InputError, check_count
from poise.shapes import Images, Labels, Model, per_image


@dataclass(frozen=True)
class WorstCase:
    """For each image the label-keeping point of lowest confidence that any of the attacks finds.

    Every attack's points are judged by a forward of their own, and x itself takes part, so the
    result is never worse than x or than any member. It costs the members' passes and one forward
    more for each.

    Args:
        attacks: the members, each aimed at the prediction.
        margin: by how much p_y has to lead its rival at a point that counts.
    """

    attacks: tuple[Attack, ...]
    margin: float = 1e-4
    uses_labels: ClassVar[bool] = False

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        best, y = accepted(x, y)
        if len(x) == 0:
            return best
        logits = judged(model, best, y)
        y = logits.argmax(dim=1) if y is None else y
        lowest = logits.softmax(dim=1).amax(dim=1)
        generator = generator or torch.Generator().manual_seed(0)
        for attack in self.attacks:
            x_adv = attack(model, x, y, generator=generator)
            kept, top = standing(model, x_adv, y, self.margin)
            better = kept & (top < lowest)
            best, lowest = torch.where(per_image(better), x_adv, best), top.where(better, lowest)
        return best


@dataclass(frozen=True)
class Restarts:
    """One attack from several random starts; each image gets its own point of lowest goal."""

    attack: Descent
    restarts: int

    def __post_init__(self) -> None:
        check_count("restarts", self.restarts, 1)
        if not self.attack.random_start:
            raise InputError("restarts need a random start (random_start=True): without, all are the same")

    @property
    def uses_labels(self) -> bool:
        """As the attack."""
        return self.attack.uses_labels

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        best, y = accepted(x, y)
        if len(x) == 0 or self.attack.steps == 0:
            return best
        logits = judged(model, best, y)
        y = logits.argmax(dim=1) if y is None else y
        goal = self.attack.goal or self.attack.objective
        lowest = goal(logits, y)
        generator = generator or torch.Generator().manual_seed(0)
        for _ in range(self.restarts):
            x_adv = self.attack(model, x, y, generator=generator)
            reached = goal(rejudged(model, x_adv), y)
            better = reached < lowest
            best, lowest = torch.where(per_image(better), x_adv, best), reached.where(better, lowest)
        return best


def worst_case(attacks: Sequence[Attack], *, margin: float = 1e-4) -> WorstCase:
    """The worst of a list of attacks for each image, every label kept (ours).

    >>> from poise.attacks import adaptive, confsmooth
    >>> len(worst_case([adaptive(steps=10), confsmooth(steps=10)]).attacks)
    2
    """
    if not attacks:
        raise InputError("worst_case needs at least one attack")
    return WorstCase(tuple(attacks), margin)

"""PGD-bisect: the last point before the boundary on the way to a misclassified one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, clean_logits, label_and_top
from poise.attacks.descent import Descent
from poise.attacks.pgd import descent
from poise.checks import check_count, settle
from poise.objectives import MARGIN, check_margin
from poise.shapes import Images, Labels, Model, per_image
from poise.threat import Ball, between


@dataclass(frozen=True, kw_only=True)
class PgdBisect:
    """A check on every label-keeping attack that no step rule can fool.

    Where PGD flips the prediction, the straight way there crosses the boundary, so it holds a
    label-keeping point of confidence at most about 1/2. An attack that ends well above this one has failed.
    Images that PGD does not flip get its end if it lowers the confidence, else x.
    `pgd.steps` gradients, `bisections` + 1 more forwards than PGD, and one for the prediction.
    """

    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="lower")
    uses_labels = property(takes_true_labels)

    pgd: Descent
    bisections: int = 10
    margin: float = MARGIN

    @property
    def ball(self) -> Ball:
        """Where the images may go."""
        return self.pgd.ball

    def __post_init__(self) -> None:
        settle(self)
        check_count("bisections", self.bisections)
        check_margin(self.margin)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        logits = clean_logits(model, x, y)
        y = logits.argmax(dim=1) if y is None else y
        found, lowest = x, logits.softmax(dim=1).amax(dim=1)
        far = self.pgd(model, x, y, generator=generator)
        near, beyond = torch.zeros_like(lowest), torch.ones_like(lowest)
        share = beyond
        for _ in range(self.bisections + 1):
            at = between(x, far, share)
            kept, top = label_and_top(model, at, y, self.margin)
            better = kept & (top < lowest)
            found, lowest = torch.where(per_image(better), at, found), torch.where(better, top, lowest)
            near, beyond = torch.where(kept, share, near), torch.where(kept, beyond, share)
            share = (near + beyond) / 2
        return found


def pgd_bisect(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    margin: float = MARGIN,
    norm: str = "linf",
) -> PgdBisect:
    """PGD against the prediction, then bisections back to the last point that keeps it (ours).

    >>> pgd_bisect(steps=40).pgd.steps
    40
    """
    attack = descent(eps=eps, step=step, steps=steps, keep="last", norm=norm, random_start=False)
    return PgdBisect(pgd=attack, margin=margin)

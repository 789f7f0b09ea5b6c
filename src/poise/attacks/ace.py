"""ACE: one gradient, and a step that halves until the label holds (Galil & El-Yaniv 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, attacked_logits, check_finite, clean_logits
from poise.attacks.descent import Descent, pulse
from poise.checks import check_count, settle
from poise.draws import Draw
from poise.objectives import Confidence, Negative, Split
from poise.rules import Always
from poise.shapes import Images, Labels, Model, per_image
from poise.threat import Ball, ball


@dataclass(frozen=True, kw_only=True)
class Ace:
    """Right answers less sure, wrong answers surer, by one step along the gradient of p_y.

    A step that changes the prediction is halved, up to `halvings` times, else not taken. One
    backward, `halvings` + 3 forwards. Without y every prediction counts as right.
    """

    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=True, wants="apart")
    uses_labels = property(takes_true_labels)

    ball: Ball
    step: float
    halvings: int = 15

    def __post_init__(self) -> None:
        settle(self)
        check_count("halvings", self.halvings)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        prediction = clean_logits(model, x, y).argmax(dim=1)
        right = prediction == (prediction if y is None else y)
        apart = Split(right, Confidence(), Negative(Confidence()))
        once = Descent(objective=apart, rule=Always(), ball=self.ball, step=self.step, steps=1)
        start = next(once.path(model, x, prediction))
        assert start.grad is not None
        check_finite(torch.isfinite(pulse(start)))
        way, found, size = self.ball.steepest(start.grad), x, self.step
        waiting = torch.ones_like(right)
        for _ in range(self.halvings + 1):
            tried = self.ball.project(x - size * way, x, Draw.of(x))
            kept = waiting & (attacked_logits(model, tried).argmax(dim=1) == prediction)
            found = torch.where(per_image(kept), tried, found)
            waiting, size = waiting & ~kept, size / 2
        return found


def ace(*, eps: float = 0.03, halvings: int = 15, norm: str = "linf") -> Ace:
    """One gradient step of size eps, halved until the label holds (Galil & El-Yaniv 2021).

    >>> ace(eps=0.1).halvings
    15
    """
    return Ace(ball=ball(norm, eps), step=eps, halvings=halvings)

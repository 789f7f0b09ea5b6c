"""Random noise as an attack: what any change of that size does, the measure of all that search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import check_finite, check_inputs, wide
from poise.checks import check_count, check_logits, settle
from poise.draws import Draw
from poise.modes import ask, evaluating
from poise.objectives import MARGIN, check_margin, holds
from poise.shapes import Images, Labels, Logits, Model, PerSample, per_image
from poise.threat import Ball, ball_round
from poise.threat import ball as ball_of


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of some random points on the ball's rim, and x itself, the least confident that keeps the label.

    A point is x plus a whole step in the steepest direction of a normal gradient: a random sign times
    eps at every pixel (L∞), a random direction (L2), all on one pixel (L1). `tries` + 1 forwards.
    """

    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="lower")
    uses_labels = property(takes_true_labels)

    ball: Ball
    eps: float
    tries: int
    margin: float

    def __post_init__(self) -> None:
        settle(self)
        check_count("tries", self.tries, 1)
        check_margin(self.margin)

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images; y are the labels to keep, by default the predictions."""
        center, y = check_inputs(x, y)
        if len(x) == 0:
            return center
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            return self._best(model, center, y, Draw.of(center, generator))

    def _best(self, model: Model, center: Images, y: Labels | None, draw: Draw) -> Images:
        logits = _ask(model, center)
        check_logits(logits, len(center), y)
        y = logits.argmax(dim=1) if y is None else y
        best, lowest, ball = center, _top(logits), ball_round(self.ball, center)
        for number in range(self.tries):
            way = ball.steepest(draw.at(2 * number).normal(center))
            at = ball.project(center + self.eps * way, center, draw.at(2 * number + 1))
            logits = _ask(model, at)
            check_finite(torch.isfinite(logits).all(dim=1))
            better = holds(logits, y, self.margin) & (_top(logits) < lowest)
            best, lowest = torch.where(per_image(better), at, best), _top(logits).where(better, lowest)
        return best


def _ask(model: Model, x: Images) -> Logits:
    out = ask(model, x)
    logits: Logits = torch.tensor(out) if isinstance(out, np.ndarray) else out
    return logits.to(x.device) if isinstance(logits, torch.Tensor) else logits


def _top(logits: Logits) -> PerSample:
    return wide(logits).softmax(dim=1).amax(dim=1)


def noise(*, eps: float = 0.03, tries: int = 10, margin: float = MARGIN, norm: str = "linf") -> Noise:
    """The best of some random changes of size eps: is an attack more than noise? (ours).

    >>> noise(eps=0.1).tries
    10
    """
    return Noise(ball=ball_of(norm, eps), eps=eps, tries=tries, margin=margin)

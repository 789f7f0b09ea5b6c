"""Attacks that raise the confidence, aim at a target, or move it away from the truth.

The aims are those of Obadinma et al. 2024. The label is kept, and the confidence that moves is always
that of the predicted class, also where it is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, clean_logits
from poise.attacks.confsmooth import confsmooth
from poise.attacks.descent import Descent
from poise.checks import check_number
from poise.draws import Draw
from poise.objectives import MARGIN, Confidence, Distance, Negative, SmoothedCrossEntropy, Split
from poise.rules import Backtrack, StepBack
from poise.shapes import Images, Labels, Model, PerSample
from poise.threat import Ball, ball, first_step


def overconfidence(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    grow: float = 1.1,
    margin: float = MARGIN,
    norm: str = "linf",
) -> Descent:
    """Raise the confidence in the prediction, right or wrong (after Obadinma et al. 2024).

    >>> overconfidence(eps=0.1).objective
    SmoothedCrossEntropy(smoothing=0.0)
    """
    return Descent(
        objective=SmoothedCrossEntropy(0.0),
        rule=StepBack(grow=grow, margin=margin),
        ball=ball(norm, eps),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep="best",
        goal=Negative(Confidence()),
    )


def target_confidence(
    *,
    target: float | Tensor = 0.5,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    margin: float = MARGIN,
    norm: str = "linf",
) -> Descent:
    """Bring the confidence in the prediction to a target, from above or below, as near as it goes (ours).

    The distance is descended in log-odds, whose gradient does not vanish; a step that comes no nearer
    is taken back and halved. A tensor of targets (n,) aims each image at its own.

    >>> target_confidence(target=0.7).goal
    Distance(target=0.7, odds=False)
    """
    if not isinstance(target, Tensor):
        check_number("target", target, 1e-6, 1 - 1e-6, hint="it is the confidence to reach")
    return Descent(
        objective=Distance(target, odds=True),
        rule=Backtrack(margin=margin),
        ball=ball(norm, eps),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep="best",
        goal=Distance(target),
    )


@dataclass(frozen=True)
class RandomConfidence:
    """Bring each image's confidence to a target of its own, drawn from U(1/K + 0.05, 0.99).

    The targets of a call are those that `targets` gives for the same generator state. One forward
    more than the descent's.
    """

    descent: Descent  # towards whatever target: each call sets it
    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="target")
    uses_labels = property(takes_true_labels)

    @property
    def ball(self) -> Ball:
        """Where the images may go."""
        return self.descent.ball

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        logits = clean_logits(model, x, y)
        target = self.targets(x, logits.shape[1], generator=generator).to(logits.dtype)
        aimed = replace(self.descent, objective=Distance(target, odds=True), goal=Distance(target))
        return aimed(model, x, logits.argmax(dim=1) if y is None else y)

    def targets(self, x: Images, classes: int, *, generator: torch.Generator | None = None) -> PerSample:
        """The confidences (n,) that a call with this generator state aims at."""
        low, high = 1 / classes + 0.05, 0.99
        return low + (high - low) * Draw.of(x, generator).uniform_each(x.flatten(1)[:, 0])


def random_confidence(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    margin: float = MARGIN,
    norm: str = "linf",
) -> RandomConfidence:
    """Bring each image's confidence to a random target (after Obadinma et al. 2024).

    >>> random_confidence(eps=0.1).descent.ball
    Linf(eps=0.1)
    """
    return RandomConfidence(target_confidence(eps=eps, step=step, steps=steps, margin=margin, norm=norm))


@dataclass(frozen=True)
class MaxMiscalibration:
    """Lower the confidence of right answers and raise that of wrong ones, every label kept.

    Without y every answer counts as right. One forward more than the descent's.
    """

    under: Descent
    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=True, wants="apart")
    uses_labels = property(takes_true_labels)

    @property
    def ball(self) -> Ball:
        """Where the images may go."""
        return self.under.ball

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        prediction = clean_logits(model, x, y).argmax(dim=1)
        right = prediction == (prediction if y is None else y)
        both = replace(
            self.under,
            objective=Split(right, self.under.objective, SmoothedCrossEntropy(0.0)),
            goal=Split(right, Confidence(), Negative(Confidence())),
        )
        return both(model, x, prediction, generator=generator)


def max_miscalibration(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    smoothing: float = 0.98,
    grow: float = 1.1,
    margin: float = MARGIN,
    norm: str = "linf",
) -> MaxMiscalibration:
    """Make right answers less sure and wrong ones surer (after Obadinma et al. 2024).

    >>> max_miscalibration(eps=0.1).under.ball
    Linf(eps=0.1)
    """
    return MaxMiscalibration(
        confsmooth(
            eps=eps,
            step=step,
            steps=steps,
            smoothing=smoothing,
            grow=grow,
            margin=margin,
            norm=norm,
        )
    )

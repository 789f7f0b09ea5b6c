"""Calibration attack adversarial training (Obadinma et al. 2024)."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from poise import attacks
from poise.attacks import Attack
from poise.checks import InputError, check_count, settle
from poise.defenses.common import check_walks, source, together
from poise.shapes import Images, Labels, Model, Scalar
from poise.threat import Linf, Masked


@dataclass(frozen=True)
class CalibrationTraining:
    """The sum over the attacks of the mean cross-entropy of their images against the true labels.

    All attacked images pass the model together, in one forward.

    Args:
        attacks: one or more; each gets the true labels, if it attacks against labels.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        settle(self)
        if not self.attacks:
            raise InputError("attacks must name at least one attack, got none")
        check_walks(*self.attacks)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        generator = source(generator)
        attacked = [attacks.run(attack, model, x, y, generator=generator) for attack in self.attacks]
        losses = [F.cross_entropy(logits, y) for logits in together(model, *attacked)]
        return torch.stack(losses).sum()


def caat(
    *,
    eps: float = 8 / 255,
    step: float = 5 / 255,
    steps: int = 10,
    keep_fraction: float = 0.05,
    over: bool = False,
) -> CalibrationTraining:
    """CAAT: train on images of the Dropout attack, less confident than x (Obadinma et al. 2024).

    With `over` also on more confident ones, of which 0.9 of the pixels are kept: the cited work trains on
    both, here with the paper's reading of Dropout; the paper trains on the former alone (section 4.1).

    >>> caat(steps=5).attacks == (attacks.dropout(eps=8 / 255, steps=5),)
    True
    """
    check_count("steps", steps, 1)
    under = attacks.dropout(eps=eps, step=step, steps=steps, keep_fraction=keep_fraction)
    if not over:
        return CalibrationTraining((under,))
    raising = replace(
        attacks.overconfidence(eps=eps, step=step, steps=steps, margin=0.0),
        ball=Masked(Linf(eps), 0.9),
        keep="last",
    )
    return CalibrationTraining((under, raising))


def caat_accumulated(
    *, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10, keep_fraction: float = 0.05
) -> CalibrationTraining:
    """CAAT by eqs. 2-3 literally; with keep_fraction=0.95 the default before (Obadinma et al. 2024).

    >>> caat_accumulated(keep_fraction=0.95).attacks[0].ball.keep_fraction
    0.95
    """
    check_count("steps", steps, 1)
    return CalibrationTraining(
        (attacks.dropout_accumulated(eps=eps, step=step, steps=steps, keep_fraction=keep_fraction),)
    )


def caat_rescaled(
    *, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10, keep_fraction: float = 0.05
) -> CalibrationTraining:
    """CAAT where the surviving changes grow by 1/p and leave the ball (Obadinma et al. 2024).

    >>> caat_rescaled(eps=0.01).attacks[0].ball
    Masked(ball=Linf(eps=0.01), keep_fraction=0.05, rescale=True)
    """
    check_count("steps", steps, 1)
    return CalibrationTraining(
        (attacks.dropout_rescaled(eps=eps, step=step, steps=steps, keep_fraction=keep_fraction),)
    )


def caat_cited(
    *, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10, keep_fraction: float = 0.05
) -> CalibrationTraining:
    """CAAT with the attack as the cited work's code runs it, which leaves the ball (Obadinma et al. 2024).

    >>> caat_cited().attacks[0].aim.labels
    'true'
    """
    check_count("steps", steps, 1)
    return CalibrationTraining(
        (attacks.dropout_cited(eps=eps, step=step, steps=steps, keep_fraction=keep_fraction),)
    )

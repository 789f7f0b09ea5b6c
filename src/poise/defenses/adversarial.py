"""Adversarial training, and with an underconfidence attack inside it, UAT (section 3.4)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from poise import attacks
from poise.attacks import Attack
from poise.checks import check_count
from poise.defenses.common import check_walks, forward
from poise.shapes import Images, Labels, Model, Scalar


class Defense(Protocol):
    """A frozen value that gives the loss to train on."""

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        """The loss of a batch, a scalar with its graph."""
        ...


@dataclass(frozen=True)
class AdversarialTraining:
    """Mean cross-entropy of attacked images against the true labels (eq. 8).

    The attack sees the model in evaluation mode; BatchNorm statistics move in the outer forward
    alone. It gets the true label if it attacks against that, else the model's own prediction.
    """

    attack: Attack

    def __post_init__(self) -> None:
        check_walks(self.attack)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        x_adv = attacks.run(self.attack, model, x, y, generator=generator)
        return F.cross_entropy(forward(model, x_adv), y)


def adversarial_training(
    *, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10
) -> AdversarialTraining:
    """AT: train on PGD images, from a random start (Madry et al. 2018).

    >>> adversarial_training(eps=0.1).attack.aim.labels
    'true'
    """
    check_count("steps", steps, 1)
    return AdversarialTraining(attacks.pgd(eps=eps, step=step, steps=steps, random_start=True))


def uat_gap(*, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10) -> AdversarialTraining:
    """UAT-Gap: train on images of the Adaptive attack (section 3.4, eq. 1 in eq. 8).

    >>> uat_gap().attack.steps
    10
    """
    check_count("steps", steps, 1)
    return AdversarialTraining(attacks.adaptive(eps=eps, step=step, steps=steps, keep="last"))


def uat_smooth(
    *, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 5, smoothing: float = 0.98
) -> AdversarialTraining:
    """UAT-Smooth: train on images of the ConfSmooth attack (section 3.4, eq. 7 in eq. 8).

    >>> uat_smooth().attack.steps
    5
    """
    check_count("steps", steps, 1)
    return AdversarialTraining(
        attacks.confsmooth(eps=eps, step=step, steps=steps, smoothing=smoothing, keep="last")
    )


def uat_gap_unprojected(*, step: float = 5 / 255, steps: int = 10) -> AdversarialTraining:
    """UAT-Gap whose training attack is held to [0, 1] alone, not to S: a reading of section 3.4.

    >>> uat_gap_unprojected().attack.ball
    Linf(eps=1.0)
    """
    return uat_gap(eps=1.0, step=step, steps=steps)  # every image in [0, 1] lies in that ball


def uat_smooth_unprojected(
    *, step: float = 5 / 255, steps: int = 5, smoothing: float = 0.98
) -> AdversarialTraining:
    """UAT-Smooth whose training attack is held to [0, 1] alone, not to S: a reading of section 3.4.

    >>> uat_smooth_unprojected().attack.ball
    Linf(eps=1.0)
    """
    return uat_smooth(eps=1.0, step=step, steps=steps, smoothing=smoothing)

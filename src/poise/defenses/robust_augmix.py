"""RobustAugMix (Martinez-Martinez & Brown 2022)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise import attacks
from poise.attacks import Attack
from poise.checks import check_count, check_number, settle
from poise.defenses.augmix import AugMix
from poise.defenses.common import check_walks, jsd, source, together
from poise.shapes import Images, Labels, Model, Scalar


@dataclass(frozen=True)
class RobustAugMix:
    """CE(f(x), y) + weight · JSD(f(x), f(x_aug), f(x_adv)), in one forward over all of them.

    Args:
        attack: gives x_adv; its labels are the true ones, if it attacks against labels.
        weight: λ.
        augment: gives x_aug; None leaves that branch out of the divergence.
    """

    attack: Attack
    weight: float
    augment: AugMix | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_number("weight", self.weight, 0)
        check_walks(self.attack)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        generator = source(generator)
        x_adv = attacks.run(self.attack, model, x, y, generator=generator)
        augmented = () if self.augment is None else (self.augment(x, generator=generator),)
        clean, *others = together(model, x, *augmented, x_adv)
        return F.cross_entropy(clean, y) + self.weight * jsd(clean, *others).mean()


def robust_augmix(
    *,
    eps: float = 8 / 255,
    step: float = 5 / 255,
    steps: int = 10,
    weight: float = 12.0,
    augment: bool = False,
) -> RobustAugMix:
    """Clean cross-entropy and predictions that agree under attack (Martinez-Martinez & Brown 2022).

    Without the augmented branch by default, as in the paper (section 4.1).

    >>> robust_augmix(augment=True).augment
    AugMix(severity=3.0, width=3, depth=3)
    """
    check_count("steps", steps, 1)
    attack = attacks.pgd(eps=eps, step=step, steps=steps, random_start=True)
    return RobustAugMix(attack, weight, AugMix() if augment else None)

"""UAT-Mix: half of each batch attacked in its label, half in its confidence (ours)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise import attacks
from poise.attacks import Attack
from poise.checks import check_count, check_number, settle
from poise.defenses.common import check_walks, shuffle, source, together, uniform
from poise.shapes import Images, Labels, Model, Scalar
from poise.threat import Linf


@dataclass(frozen=True)
class MixedTraining:
    """Mean cross-entropy against the true labels of a batch, parts of which two attacks have changed.

    The batch is parted at random. A share that makes no whole number of images is met on average,
    so that a batch of one image goes to either attack.

    Args:
        first: attacks that share; gets the true labels, if it attacks against labels.
        second: attacks the rest, likewise.
        share: of the images, in [0, 1].
    """

    first: Attack
    second: Attack
    share: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("share", self.share, 0, 1)
        check_walks(self.first, self.second)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        generator = source(generator)
        order = shuffle(y, generator)
        many = int(self.share * len(y) + uniform(generator))
        attacked = [
            attacks.run(attack, model, x[part], y[part], generator=generator)
            for attack, part in ((self.first, order[:many]), (self.second, order[many:]))
        ]
        return F.cross_entropy(torch.cat(together(model, *attacked)), y[order])


def uat_mix(
    *,
    eps: float = 8 / 255,
    step: float | None = None,
    steps: int = 5,
    share: float = 0.5,
    smoothing: float = 0.98,
) -> MixedTraining:
    """UAT-Mix: PGD against the true label on half the batch, ConfSmooth on the other half (ours).

    `step` is ConfSmooth's first step, by default 5/8 of eps, the paper's ratio. PGD starts at random
    with steps of 2/5 of eps. `share` is PGD's part of the batch.

    >>> uat_mix(eps=0.1).first.step, uat_mix(eps=0.1).second.step
    (0.04, 0.0625)
    """
    check_count("steps", steps, 1)
    eps = Linf(eps).eps
    first_step = 5 * eps / 8 if step is None else step
    return MixedTraining(
        attacks.pgd(eps=eps, step=eps / 2.5, steps=steps, random_start=True),
        attacks.confsmooth(eps=eps, step=first_step, steps=steps, smoothing=smoothing, keep="last"),
        share,
    )

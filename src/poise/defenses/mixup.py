"""Mixup (Zhang et al. 2018), for calibration (Thulasidasan et al. 2019)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from poise.checks import check_number, settle
from poise.defenses.common import forward, shuffle, source
from poise.shapes import Images, Labels, Model, Scalar


@dataclass(frozen=True)
class Mixup:
    """λ·CE(f(x̃), y) + (1 − λ)·CE(f(x̃), y′) at x̃ = λx + (1 − λ)x′, (x′, y′) the batch in random order.

    One λ a batch, from Beta(alpha, alpha). No clean image is seen unless λ is near 0 or 1.

    Args:
        alpha: 0.2 mixes little most of the time, 1 is uniform.
    """

    alpha: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("alpha", self.alpha, 1e-3, hint="it is the parameter of Beta(alpha, alpha)")

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        share, order = self.draw(y, generator)
        logits = forward(model, share * x + (1 - share) * x[order])
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])

    def draw(self, y: Labels, generator: torch.Generator | None = None) -> tuple[float, Labels]:
        """The λ and the order of a call with this generator state.

        NumPy's sampler, seeded from the generator: torch's Beta draws from the global state only.
        """
        generator = source(generator)
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return float(np.random.default_rng(seed).beta(self.alpha, self.alpha)), shuffle(y, generator)


def mixup(*, alpha: float = 0.2) -> Mixup:
    """Cross-entropy of mixed pairs of images to mixed labels (Thulasidasan et al. 2019).

    >>> mixup()
    Mixup(alpha=0.2)
    """
    return Mixup(alpha)

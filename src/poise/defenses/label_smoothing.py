"""Label smoothing (Szegedy et al. 2016)."""

from dataclasses import dataclass

import torch

from poise.checks import settle
from poise.defenses.common import forward
from poise.objectives import SmoothedCrossEntropy
from poise.shapes import Images, Labels, Model, Scalar


@dataclass(frozen=True)
class LabelSmoothing:
    """Mean of −Σ_j [(1 − smoothing)·1(j = y) + smoothing / K] · log q_j over clean images.

    Args:
        smoothing: the mass spread evenly over the K classes, in [0, 1].
    """

    smoothing: float

    def __post_init__(self) -> None:
        settle(self)
        SmoothedCrossEntropy(self.smoothing)  # the same bounds

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        return SmoothedCrossEntropy(self.smoothing)(forward(model, x), y).mean()


def label_smoothing(*, smoothing: float = 0.1) -> LabelSmoothing:
    """Cross-entropy to labels with a tenth of their mass spread evenly (Szegedy et al. 2016).

    >>> label_smoothing()
    LabelSmoothing(smoothing=0.1)
    """
    return LabelSmoothing(smoothing)

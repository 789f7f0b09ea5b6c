"""The penalty on the difference of confidence and accuracy (Liang et al. 2020)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise.checks import check_number, settle
from poise.defenses.common import forward
from poise.shapes import Images, Labels, Logits, Model, Scalar


@dataclass(frozen=True)
class ConfidenceAccuracy:
    """Mean cross-entropy + weight · |accuracy − mean confidence in the predicted class| of the batch.

    The accuracy is a number without gradient. The difference is that of the whole batch, so it
    depends on the batch size; over several devices, of each one's part.

    Args:
        weight: β, at least 0.
    """

    weight: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("weight", self.weight, 0)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        logits = forward(model, x)
        return F.cross_entropy(logits, y) + self.weight * difference(logits, y)


def difference(logits: Logits, y: Labels) -> Scalar:
    """|accuracy − mean confidence|, in [0, 1].

    >>> difference(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    tensor(0.2500)
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    return ((predicted == y).to(confidence.dtype).mean() - confidence.mean()).abs()


def dca(*, weight: float = 1.0) -> ConfidenceAccuracy:
    """Cross-entropy, and the batch's confidence held to its accuracy (Liang et al. 2020).

    The weight of 1 is ours: theirs was searched for each data set.

    >>> dca()
    ConfidenceAccuracy(weight=1.0)
    """
    return ConfidenceAccuracy(weight)

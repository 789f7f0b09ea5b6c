"""Objectives: one number an image, always minimised, no reduction over the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch.nn import functional as F

from poise.checks import check_number
from poise.shapes import Labels, Logits, PerSample

Objective: TypeAlias = Callable[[Logits, Labels], PerSample]


def rival(values: Logits, y: Labels) -> PerSample:
    """The largest entry of each row besides that of y.

    >>> import torch
    >>> rival(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [2.0]
    """
    others = values.scatter(1, y[:, None], float("-inf"))
    return others.max(dim=1).values


@dataclass(frozen=True)
class Gap:
    """p_y − max_{j≠y} p_j, the lead of class y in probability (eq. 1).

    >>> import torch
    >>> round(Gap()(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0])).item(), 6)
    0.2
    """

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        p = logits.softmax(dim=1)
        return p.gather(1, y[:, None])[:, 0] - rival(p, y)


@dataclass(frozen=True)
class Confidence:
    """p_y, which is the maximum softmax probability wherever the prediction is y.

    >>> import torch
    >>> Confidence()(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [0.25]
    """

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return logits.softmax(dim=1).gather(1, y[:, None])[:, 0]


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """−Σ_i [(1 − smoothing)·1(i = y) + smoothing / K] · log q_i (eq. 7).

    >>> import torch
    >>> loss = SmoothedCrossEntropy(1.0)(torch.zeros(1, 4), torch.tensor([2]))
    >>> bool(torch.isclose(loss[0], torch.tensor(4.0).log()))
    True
    """

    smoothing: float

    def __post_init__(self) -> None:
        check_number(
            "smoothing",
            self.smoothing,
            0,
            1,
            hint="it is the mass spread evenly over the classes (ε of eq. 7)",
        )

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)


@dataclass(frozen=True)
class NegativeCrossEntropy:
    """log q_y: minimised where class y is least likely, the misclassification objective.

    >>> import torch
    >>> NegativeCrossEntropy()(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [-0.6931471824645996]
    """

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return -F.cross_entropy(logits, y, reduction="none")

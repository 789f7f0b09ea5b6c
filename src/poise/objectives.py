"""Objectives: one number an image, always minimised, no reduction over the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.checks import check_number, settle
from poise.shapes import Labels, Logits, Mask, PerSample

Objective: TypeAlias = Callable[[Logits, Labels], PerSample]
Wants: TypeAlias = Literal["lower", "higher", "apart", "target", "mislabel", "unknown"]
WANTS: tuple[Wants, ...] = get_args(Wants)


def wants_of(objective: Objective) -> Wants:
    """Where p_y goes when the objective falls, as the objective says by `wants`; "unknown" without it.

    >>> wants_of(Gap()), wants_of(Negative(Gap())), wants_of(lambda logits, y: logits[:, 0])
    ('lower', 'higher', 'unknown')
    """
    found: Wants = getattr(objective, "wants", "unknown")
    return found


def rival(values: Logits, y: Labels) -> PerSample:
    """The largest entry of each row besides that of y.

    >>> import torch
    >>> rival(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [2.0]
    """
    others = values.scatter(1, y[:, None], float("-inf"))
    return others.max(dim=1).values


def lead(values: Logits, y: Labels) -> PerSample:
    """By how much the entry of y exceeds the largest other one.

    >>> import torch
    >>> lead(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [1.0]
    """
    return values.gather(1, y[:, None])[:, 0] - rival(values, y)


MARGIN = 1e-4  # by how much a label has to lead, in probability, at a point that counts
UNITS = 32  # of the last place of the largest logit: what another kernel, batch or precision may change


def holds(logits: Logits, y: Labels, margin: float, *, units: int = UNITS) -> Mask:
    """Whether y is the prediction and leads its rival by the margin in probability, beyond rounding.

    With a margin, y has to lead by so many units in the last place of the largest logit too: logits of
    size 1e5 in float32 are told apart to a hundredth, which a difference of probabilities does not show.

    >>> import torch
    >>> z = torch.tensor([[0.6, 0.0], [100_000.1, 100_000.0]])
    >>> holds(z, torch.tensor([0, 0]), 0.0).tolist(), holds(z, torch.tensor([0, 0]), 1e-4).tolist()
    ([True, True], [True, False])
    """
    if not margin:
        return logits.argmax(dim=1) == y
    unit = torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
    return (Gap()(logits, y) >= margin) & (lead(logits, y) >= units * unit)


def check_margin(margin: float) -> None:
    """Refuse a margin that no difference of probabilities can be."""
    check_number("margin", margin, 0, 1, hint="it is a difference of probabilities")


@dataclass(frozen=True)
class Gap:
    """p_y − max_{j≠y} p_j, the lead of class y in probability (eq. 1).

    >>> import torch
    >>> round(Gap()(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0])).item(), 6)
    0.2
    """

    wants: ClassVar[Wants] = "lower"

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return lead(logits.softmax(dim=1), y)


@dataclass(frozen=True)
class Confidence:
    """p_y, which is the maximum softmax probability wherever the prediction is y.

    >>> import torch
    >>> Confidence()(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [0.25]
    """

    wants: ClassVar[Wants] = "lower"

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
        settle(self)
        check_number(
            "smoothing",
            self.smoothing,
            0,
            1,
            hint="it is the mass spread evenly over the classes (ε of eq. 7)",
        )

    @property
    def wants(self) -> Wants:
        """Up without smoothing, down with nothing else; between them p_y is at rest inside."""
        ends: dict[float, Wants] = {0.0: "higher", 1.0: "lower"}
        return ends.get(self.smoothing, "target")

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        log_q = logits.log_softmax(dim=1)
        own = F.nll_loss(log_q, y, reduction="none")
        # the bits of F.cross_entropy(label_smoothing=...) at half its operations
        return (1 - self.smoothing) * own - (self.smoothing / logits.shape[1]) * log_q.sum(dim=1)


@dataclass(frozen=True)
class NegativeCrossEntropy:
    """log q_y: minimised where class y is least likely, the misclassification objective.

    >>> import torch
    >>> NegativeCrossEntropy()(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [-0.6931471824645996]
    """

    wants: ClassVar[Wants] = "lower"

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return -F.cross_entropy(logits, y, reduction="none")


@dataclass(frozen=True)
class Negative:
    """The opposite of an objective: what is minimised is raised.

    >>> import torch
    >>> Negative(Confidence())(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [-0.25]
    """

    of: Objective

    @property
    def wants(self) -> Wants:
        """The other way."""
        opposite: dict[Wants, Wants] = {"lower": "higher", "higher": "lower"}
        return opposite.get(wants_of(self.of), "unknown")

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return -self.of(logits, y)


@dataclass(frozen=True)
class Distance:
    """|p_y − target|, or with `odds` the distance of their log-odds, whose gradient does not vanish.

    The target is one number, or a tensor of one an image.

    >>> import torch
    >>> Distance(0.75)(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [0.25]
    >>> round(Distance(0.75, odds=True)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 3
    1.0986
    """

    wants: ClassVar[Wants] = "target"
    target: float | Tensor
    odds: bool = False

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        if not self.odds:
            return (Confidence()(logits, y) - self.target).abs()
        others = logits.scatter(1, y[:, None], float("-inf")).logsumexp(dim=1)
        target = torch.as_tensor(self.target, dtype=logits.dtype, device=logits.device)
        return (logits.gather(1, y[:, None])[:, 0] - others - target.logit()).abs()


@dataclass(frozen=True, eq=False)
class Split:
    """One objective for the images that the mask names, another for the rest.

    >>> import torch
    >>> both = Split(torch.tensor([True, False]), Confidence(), Negative(Confidence()))
    >>> both(torch.zeros(2, 4), torch.tensor([0, 0])).tolist()
    [0.25, -0.25]
    """

    mask: Mask
    chosen: Objective
    rest: Objective
    wants: ClassVar[Wants] = "apart"

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return torch.where(self.mask, self.chosen(logits, y), self.rest(logits, y))

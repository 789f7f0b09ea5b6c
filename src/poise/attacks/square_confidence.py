"""Black-box attacks on the confidence: Square's search with the label kept (Obadinma et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.attacks.square import Criterion, Goal, Outputs, Score, Search
from poise.attacks.square_moves import moves
from poise.checks import check_number, settle
from poise.draws import Draw
from poise.objectives import MARGIN, Confidence, Wants, lead
from poise.shapes import Labels, Logits, PerSample

P_INIT, QUERIES = 0.05, 1000


@dataclass(frozen=True)
class LowerConfidence:
    """Lower z_y − max_{j≠y} z_j down to `stop`, and never raise p_y, of the predicted class y.

    >>> score = LowerConfidence().score(torch.tensor([[3.0, 1.0]]), Goal(torch.tensor([0]), torch.zeros(1)))
    >>> score.loss.tolist(), score.done.tolist()
    ([2.0], [False])
    """

    stop: float = 0.1
    uses_labels: ClassVar[bool] = False
    wants: ClassVar[Wants] = "lower"

    def __post_init__(self) -> None:
        settle(self)
        check_number("stop", self.stop, 0, hint="it is a difference of logits")

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        return _prediction(z)

    def score(self, z: Logits, goal: Goal) -> Score:
        loss = lead(z, goal.label)
        return Score(loss, Confidence()(z, goal.label), loss <= self.stop)


@dataclass(frozen=True)
class RaiseConfidence:
    """Raise p_y of the predicted class y up to `stop`.

    >>> score = RaiseConfidence().score(torch.zeros(1, 2), Goal(torch.tensor([0]), torch.zeros(1)))
    >>> score.harm.tolist(), score.done.tolist()
    ([-0.5], [False])
    """

    stop: float = 0.99
    uses_labels: ClassVar[bool] = False
    wants: ClassVar[Wants] = "higher"

    def __post_init__(self) -> None:
        settle(self)
        check_number("stop", self.stop, 0, 1, hint="it is a confidence")

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        return _prediction(z)

    def score(self, z: Logits, goal: Goal) -> Score:
        confidence = Confidence()(z, goal.label)
        return Score(-_log_odds(z, goal.label), -confidence, confidence >= self.stop)


@dataclass(frozen=True)
class Miscalibrate:
    """Lower the confidence of right answers, raise that of wrong ones; without y all are right.

    >>> goal = Miscalibrate().goal(torch.eye(2), torch.tensor([0, 0]), Draw.of(torch.zeros(2, 1, 1, 1)))
    >>> goal.label.tolist(), goal.want.tolist()
    ([0, 1], [0.0, 1.0])
    """

    lower: LowerConfidence = LowerConfidence()
    higher: RaiseConfidence = RaiseConfidence()
    uses_labels: ClassVar[bool] = True
    wants: ClassVar[Wants] = "apart"

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        label, want = _prediction(z)
        return Goal(label, want if y is None else (label != y).to(z.dtype))

    def score(self, z: Logits, goal: Goal) -> Score:
        pairs = zip(self.higher.score(z, goal), self.lower.score(z, goal), strict=True)
        return Score(*(torch.where(goal.want > 0, up, down) for up, down in pairs))


@dataclass(frozen=True)
class ReachConfidence:
    """Bring p_y of the predicted class y to a number drawn from U(1/K + 0.05, 0.99), within `stop`.

    >>> goal = ReachConfidence().goal(torch.zeros(1, 10), None, Draw.of(torch.zeros(1, 1, 1, 1)))
    >>> bool(0.15 < goal.want < 0.99)
    True
    """

    stop: float = 0.01
    uses_labels: ClassVar[bool] = False
    wants: ClassVar[Wants] = "target"

    def __post_init__(self) -> None:
        settle(self)
        check_number("stop", self.stop, 0, 1, hint="it is a difference of confidences")

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        label, want = _prediction(z)
        low, high = 1 / z.shape[1] + 0.05, 0.99
        u = draw.uniform_each(torch.empty(len(z), device=z.device))
        return Goal(label, low + (high - low) * u.to(want.dtype))

    def score(self, z: Logits, goal: Goal) -> Score:
        away = (Confidence()(z, goal.label) - goal.want).abs()
        loss = (_log_odds(z, goal.label) - goal.want.logit()).abs()
        return Score(loss, away, away <= self.stop)


def _prediction(z: Logits) -> Goal:
    return Goal(z.argmax(dim=1), torch.zeros_like(z[:, 0]))


def _log_odds(z: Logits, y: Labels) -> PerSample:
    """The log-odds of class y: rise with its probability, also where that rounds to 1."""
    own = z.gather(1, y[:, None])[:, 0]
    return own - z.scatter(1, y[:, None], float("-inf")).logsumexp(dim=1)


def _search(
    criterion: Criterion,
    eps: float,
    queries: int,
    p_init: float,
    margin: float,
    norm: str,
    outputs: Outputs,
) -> Search:
    around = moves(norm, eps)
    return Search(
        criterion=criterion, moves=around, queries=queries, p_init=p_init, margin=margin, outputs=outputs
    )


def square_underconfidence(
    *,
    eps: float = 0.03,
    queries: int = QUERIES,
    p_init: float = P_INIT,
    margin: float = MARGIN,
    norm: str = "linf",
    outputs: Outputs = "logits",
) -> Search:
    """The lowest lead over the runner-up with the label kept, black-box (Obadinma et al. 2024).

    >>> square_underconfidence().margin
    0.0001
    """
    return _search(LowerConfidence(), eps, queries, p_init, margin, norm, outputs)


def square_overconfidence(
    *,
    eps: float = 0.03,
    queries: int = QUERIES,
    p_init: float = P_INIT,
    margin: float = MARGIN,
    norm: str = "linf",
    outputs: Outputs = "logits",
) -> Search:
    """The highest confidence with the label kept, black-box (Obadinma et al. 2024).

    >>> square_overconfidence(queries=200).criterion.stop
    0.99
    """
    return _search(RaiseConfidence(), eps, queries, p_init, margin, norm, outputs)


def square_max_miscalibration(
    *,
    eps: float = 0.03,
    queries: int = QUERIES,
    p_init: float = P_INIT,
    margin: float = MARGIN,
    norm: str = "linf",
    outputs: Outputs = "logits",
) -> Search:
    """Right answers less confident, wrong ones more, labels kept, black-box (Obadinma et al. 2024).

    >>> square_max_miscalibration().aim.wants
    'apart'
    """
    return _search(Miscalibrate(), eps, queries, p_init, margin, norm, outputs)


def square_random_confidence(
    *,
    eps: float = 0.03,
    queries: int = QUERIES,
    p_init: float = P_INIT,
    margin: float = MARGIN,
    norm: str = "linf",
    outputs: Outputs = "logits",
) -> Search:
    """A random confidence for each image, with the label kept, black-box (Obadinma et al. 2024).

    >>> square_random_confidence(eps=0.1).moves.ball.eps
    0.1
    """
    return _search(ReachConfidence(), eps, queries, p_init, margin, norm, outputs)

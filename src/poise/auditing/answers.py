"""What one model under attack answers to who acts on its confidence: numbers with intervals, no torch.

An answer is trusted where its confidence is at least the threshold, and else referred to a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from poise.certify.bracket import check_below
from poise.metrics import intervals
from poise.metrics.intervals import UNKNOWN, Array, Number

LOST = {"eps_lost_5": 0.05, "eps_lost_50": 0.5}  # shares of the trusted answers
SHARES = (0.0, 1.0)
SURE = np.nextafter(
    0.5, 1
)  # a confidence above one half can be of one class only: the answer is proved too


@dataclass(frozen=True, eq=False)
class Seen:
    """What the numbers need of probabilities (n, k): four numbers an image.

    Attributes:
        answer: the class predicted.
        top: its probability, the confidence.
        own: the true class's probability.
        square: Σ_k p_k².
    """

    answer: NDArray[np.int64]
    top: Array
    own: Array
    square: Array

    @classmethod
    def of(cls, probs: ArrayLike, y: ArrayLike) -> Seen:
        """The four numbers of each image with label y."""
        p, labels = np.asarray(probs), np.asarray(y)
        answer = p.argmax(axis=1)
        rows, wide = np.arange(len(p)), p.astype(np.float64)
        return cls(answer, wide[rows, answer], wide[rows, labels], (wide**2).sum(axis=1))

    def replaced(self, where: NDArray[np.bool_], by: Seen) -> Seen:
        """Those of `by` where the mask is true."""
        names = ("answer", "top", "own", "square")
        return Seen(*(np.where(where, getattr(by, name), getattr(self, name)) for name in names))

    def take(self, chosen: NDArray[np.bool_]) -> Seen:
        """Those of the images chosen."""
        return Seen(self.answer[chosen], self.top[chosen], self.own[chosen], self.square[chosen])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was seen of one model: at the images, and at each budget under what was tried there.

    Attributes:
        y: true labels.
        classes: their names.
        clean: at the images themselves.
        under: by budget, for each attack that lowers the confidence and keeps the label.
        noise: by budget, the worst of random changes of that size.
        over: by budget, for each attack that raises the confidence and keeps the label.
        flipped: by budget, for each attack on the accuracy.
        certified: by budget, what no change can bring the confidence below.
    """

    y: NDArray[np.int64]
    classes: Sequence[str]
    clean: Seen
    under: Mapping[float, Sequence[Seen]]
    noise: Mapping[float, Sequence[Seen]] = field(default_factory=dict)
    over: Mapping[float, Sequence[Seen]] = field(default_factory=dict)
    flipped: Mapping[float, Sequence[Seen]] = field(default_factory=dict)
    certified: Mapping[float, Array] = field(default_factory=dict)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the answer at the image itself is the true label."""
        return np.asarray(self.clean.answer == self.y)

    @cached_property
    def lowest(self) -> Mapping[float, Seen]:
        """The worst case at each budget, 0 among them."""
        return worst(self, self.under)

    @property
    def epsilons(self) -> list[float]:
        """The budgets of the worst case, rising."""
        return sorted(self.under)


@dataclass(frozen=True)
class Answer:
    """One number: what was asked, at which budget (0 for the images themselves), of which class."""

    question: str
    eps: float
    of: str
    number: Number


def worst(evidence: Evidence, found: Mapping[float, Sequence[Seen]], *, sign: int = 1) -> dict[float, Seen]:
    """By budget, 0 among them: each image's point of lowest confidence whose answer is the clean one.

    The balls lie in one another, so what a smaller budget found counts for a larger one too, and the
    image itself takes part: confidences never rise with the budget. `sign=-1` for the highest.
    """
    at, lowest = {0.0: evidence.clean}, evidence.clean
    for eps in sorted(found):
        for seen in found[eps]:
            better = (seen.answer == evidence.clean.answer) & (sign * seen.top < sign * lowest.top)
            lowest = lowest.replaced(better, seen)
        at[eps] = lowest
    return at


def standing(evidence: Evidence) -> dict[float, NDArray[np.bool_]]:
    """By budget: whether a right answer is right at all points that attacks on the accuracy found."""
    at, right = {0.0: evidence.right}, evidence.right
    for eps in sorted(evidence.flipped):
        for seen in evidence.flipped[eps]:
            right = right & (seen.answer == evidence.y)
        at[eps] = right
    return at


def answers(evidence: Evidence, *, threshold: float) -> list[Answer]:
    """Every number of one model."""
    under, over = evidence.lowest, worst(evidence, evidence.over, sign=-1)
    still = worst(evidence, evidence.noise)
    parts = (
        _of_trust(evidence, under, still, threshold),
        _of_classes(evidence, under, threshold),
        _of_wrong(evidence, over, threshold),
        _of_confidence(evidence, under, still),
        _of_accuracy(evidence),
        _of_certified(evidence, under, threshold),
    )
    return [answer for part in parts for answer in part]


def frame(model: str, found: Sequence[Answer]) -> pl.DataFrame:
    """The answers as a table, a line each."""
    numbers = [answer.number for answer in found]
    return pl.DataFrame(
        {
            "model": [model] * len(found),
            "question": [answer.question for answer in found],
            "eps": [answer.eps for answer in found],
            "of": [answer.of for answer in found],
            "estimate": [number.estimate for number in numbers],
            "low": [number.low for number in numbers],
            "high": [number.high for number in numbers],
            "n": [number.n for number in numbers],
            "count": [number.count for number in numbers],
        },
        schema_overrides={"eps": pl.Float64, "n": pl.Int64, "count": pl.Int64},
    )


def _of_trust(
    evidence: Evidence, under: Mapping[float, Seen], still: Mapping[float, Seen], threshold: float
) -> Iterator[Answer]:
    """Of the right answers that are trusted, how many stay so; needless referrals; the budgets of loss."""
    right = evidence.right
    trusted = right & (evidence.clean.top >= threshold)
    yield Answer("trusted", 0.0, "", intervals.share(trusted))
    for eps, seen in under.items():
        yield Answer("trusted_kept", eps, "", intervals.share(seen.top[trusted] >= threshold))
        yield Answer("needless", eps, "", intervals.share(seen.top[right] < threshold))
    for eps, seen in still.items():
        if eps:
            yield Answer("trusted_kept_in_noise", eps, "", intervals.share(seen.top[trusted] >= threshold))
    lost = [intervals.share(under[eps].top[trusted] < threshold) for eps in evidence.epsilons]
    for question, level in LOST.items():
        yield Answer(question, 0.0, "", intervals.crossing(evidence.epsilons, lost, level))


def _of_classes(evidence: Evidence, under: Mapping[float, Seen], threshold: float) -> Iterator[Answer]:
    """Needless referrals among the images of a class, and among the answers that name it."""
    for eps, seen in under.items():
        needless = evidence.right & (seen.top < threshold)
        for label, name in enumerate(evidence.classes):
            for of, labels in (("true", evidence.y), ("predicted", evidence.clean.answer)):
                members = labels == label
                if members.any():
                    yield Answer(f"needless_by_{of}", eps, name, intervals.share(needless[members]))


def _of_wrong(evidence: Evidence, over: Mapping[float, Seen], threshold: float) -> Iterator[Answer]:
    """Of wrong answers, those trusted; of those that were referred, those pushed above the threshold."""
    wrong = ~evidence.right
    referred = wrong & (evidence.clean.top < threshold)
    for eps, seen in over.items():
        yield Answer("missed", eps, "", intervals.share(seen.top[wrong] >= threshold))
        if eps:
            yield Answer("pushed_above", eps, "", intervals.share(seen.top[referred] >= threshold))


def _of_confidence(
    evidence: Evidence, under: Mapping[float, Seen], still: Mapping[float, Seen]
) -> Iterator[Answer]:
    """Mean confidence, calibration, and whether confidence still ranks errors."""
    right, n = evidence.right, len(evidence.y)
    for eps, seen in under.items():
        yield Answer("confidence", eps, "", intervals.mean(seen.top, bounds=SHARES))
        yield Answer("confidence_of_right", eps, "", intervals.mean(seen.top[right], bounds=SHARES))
        yield Answer("ece", eps, "", intervals.of_ece(seen.top, right))
        brier = seen.square - 2 * seen.own + 1
        yield Answer("brier", eps, "", intervals.mean(brier, bounds=(0.0, 2.0)))
        yield Answer("nll", eps, "", intervals.mean(_logs(seen.own)))
        ranked = intervals.number(intervals.aurc(seen.top, right), n, bounds=SHARES)
        yield Answer("aurc", eps, "", ranked)
        yield Answer("auroc", eps, "", _auroc(seen.top[right], seen.top[~right]))
    for eps, seen in still.items():
        if eps:
            yield Answer("confidence_in_noise", eps, "", intervals.mean(seen.top, bounds=SHARES))


def _of_accuracy(evidence: Evidence) -> Iterator[Answer]:
    """Accuracy, also under attack; R, the right answers that stay; the bound ½ + R/2 of a continuous map.

    If a label can be flipped, a point on the way to it has a confidence of ½ or less, so the mean worst
    confidence of right answers is at most the bound. R is an upper estimate: attacks may miss flips.
    """
    for eps, right in standing(evidence).items():
        yield Answer("accuracy", eps, "", intervals.share(right))
        if eps:
            stable = intervals.share(right[evidence.right])
            yield Answer("stable", eps, "", stable)
            middle, low, high = ((1 + end) / 2 for end in (stable.estimate, stable.low, stable.high))
            yield Answer("bound", eps, "", Number(middle, low, high, stable.n))


def _of_certified(evidence: Evidence, under: Mapping[float, Seen], threshold: float) -> Iterator[Answer]:
    """Of the trusted right answers, those that are proved to stay so; the mean of the lower bounds.

    Raises:
        UnsoundError: what some attack found lies below a lower bound.
    """
    right = evidence.right
    trusted = right & (evidence.clean.top >= threshold)
    for eps, lower in evidence.certified.items():
        check_below(lower, under[eps].top, eps)
        proved = lower[trusted] >= max(threshold, SURE)
        yield Answer("trusted_certified", eps, "", intervals.share(proved))
        yield Answer("confidence_certified", eps, "", intervals.mean(lower[right], bounds=SHARES))


def _logs(own: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(own), dtype=np.float64)


def _auroc(sure_right: Array, sure_wrong: Array) -> Number:
    if not (len(sure_right) and len(sure_wrong)):
        return UNKNOWN
    statistic = intervals.auroc(sure_right, sure_wrong)
    return intervals.number(statistic, len(sure_right), len(sure_wrong), bounds=SHARES)

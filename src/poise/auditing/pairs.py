"""Two models on the same images: which of them holds, on grounds that a change of scale cannot win."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from poise.auditing.answers import Evidence
from poise.checks import InputError
from poise.data import ImageSet
from poise.metrics import intervals
from poise.metrics.intervals import Array, Number
from poise.recalibration import k_for_confidence, logits_of, temperature

RAW = "raw"
SCALE = "at equal scale"  # each model's logits times the k of least NLL on held-out images
CONFIDENCE = "at equal clean confidence"  # times the k at which held-out right answers have one mean
REFERRAL = "at equal referral rate"  # each at the threshold that refers one share of the clean images
TELLS_NOT = "cannot tell"
CLEAN = 0.9  # the mean confidence of right answers to compare at

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """How much more of its trusted answers the first model keeps than the second, on these grounds.

    Attributes:
        first, second: names.
        grounds: RAW, SCALE, CONFIDENCE or REFERRAL.
        eps: the budget.
        kept: the share that each keeps.
        difference: of the shares, paired image by image.
        slack: what a longer run of the main attack changed in such a share on a sample of images.
    """

    first: str
    second: str
    grounds: str
    eps: float
    kept: tuple[Number, Number]
    difference: Number
    slack: float

    @property
    def holds(self) -> str:
        """Who holds more, or that nobody can tell: within chance, or within the attack's own slack."""
        known = self.difference.beyond_zero and abs(self.difference.estimate) > self.slack
        if not known:
            return TELLS_NOT
        return self.first if self.difference.estimate > 0 else self.second


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with what was seen of it on each ground; `slack` as in `Pair`."""

    name: str
    evidence: Mapping[str, Evidence]
    slack: float


def all_pairs(candidates: Sequence[Candidate], *, threshold: float) -> list[Pair]:
    """Every two models on every ground that both have, at every budget that both have."""
    return [
        pair
        for first, second in combinations(candidates, 2)
        for pair in _of_two(first, second, threshold=threshold)
    ]


def fit_scales(net: nn.Module, held_out: ImageSet) -> dict[str, float]:
    """The multipliers of the logits for SCALE and for CONFIDENCE; those that there are."""
    z, y = logits_of(net, held_out)
    right = z[z.argmax(dim=1) == y]
    fits: dict[str, Callable[[], float]] = {
        SCALE: lambda: float(temperature(z, y).k),
        CONFIDENCE: lambda: k_for_confidence(right, CLEAN),
    }
    found = {}
    for grounds, fit in fits.items():
        with suppress(InputError):  # all answers right, one constant output: there is no such scale
            found[grounds] = fit()
    return found


def _of_two(first: Candidate, second: Candidate, *, threshold: float) -> Iterator[Pair]:
    slack = max(first.slack, second.slack)
    for grounds in (RAW, SCALE, CONFIDENCE, REFERRAL):
        kind = RAW if grounds == REFERRAL else grounds
        if kind not in first.evidence or kind not in second.evidence:
            continue
        both = (first.evidence[kind], second.evidence[kind])
        thresholds = (threshold, threshold)
        if grounds == REFERRAL:
            thresholds = equal_referral(both, threshold)
        seen = [evidence.lowest for evidence in both]
        for eps in both[0].epsilons:
            trusted = [e.right & (e.clean.top >= t) for e, t in zip(both, thresholds, strict=True)]
            stays = [at[eps].top >= t for at, t in zip(seen, thresholds, strict=True)]
            yield Pair(
                first.name,
                second.name,
                grounds,
                eps,
                _two(intervals.share(s[t]) for s, t in zip(stays, trusted, strict=True)),
                _pair_shares(stays, trusted),
                slack,
            )


def equal_referral(both: tuple[Evidence, Evidence], threshold: float) -> tuple[float, float]:
    """The thresholds at which both models refer the share of images that they do on average at this one.

    A threshold lies on the confidence of the last answer that is still trusted.
    """
    rate = float(np.mean([(evidence.clean.top < threshold).mean() for evidence in both]))
    tops = [np.sort(evidence.clean.top) for evidence in both]
    return _two(float(top[min(len(top) - 1, round(rate * len(top)))]) for top in tops)


def pairs_frame(found: Sequence[Pair]) -> pl.DataFrame:
    """The pairs as a table, a line each."""
    return pl.DataFrame(
        [
            {
                "first": pair.first,
                "second": pair.second,
                "grounds": pair.grounds,
                "eps": pair.eps,
                "kept_by_first": pair.kept[0].estimate,
                "kept_by_second": pair.kept[1].estimate,
                "difference": pair.difference.estimate,
                "low": pair.difference.low,
                "high": pair.difference.high,
                "n": pair.difference.n,
                "slack": pair.slack,
                "holds": pair.holds,
            }
            for pair in found
        ]
    )


def _pair_shares(stays: Sequence[NDArray[np.bool_]], trusted: Sequence[NDArray[np.bool_]]) -> Number:
    """The difference of the two shares, drawn with the same images."""
    if not all(mask.any() for mask in trusted):
        return Number(math.nan, math.nan, math.nan, len(trusted[0]))
    first, second = (intervals.ratio(s, t) for s, t in zip(stays, trusted, strict=True))
    return intervals.number(intervals.difference(first, second), len(trusted[0]), bounds=(-1.0, 1.0))


def slack(evidence: Evidence, longer: Evidence, places: NDArray[np.int64], *, threshold: float) -> float:
    """By how much the share of trusted answers that stay falls where the main attack runs longer.

    Args:
        evidence: of all images.
        longer: of the images at `places`, at one of the budgets.
        places: which images these are.
        threshold: from which on an answer is trusted.
    """
    (eps,) = longer.under
    before = evidence.lowest[eps].top[places]
    trusted = (evidence.right & (evidence.clean.top >= threshold))[places]
    if not trusted.any():
        return 0.0
    after: Array = np.minimum(before, longer.lowest[eps].top)
    return float((before >= threshold)[trusted].mean() - (after >= threshold)[trusted].mean())


def _two(values: Iterable[T]) -> tuple[T, T]:
    first, second = values
    return first, second

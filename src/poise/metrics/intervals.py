"""Numbers with what is not known of them: 95 % intervals over images.

Shares have Wilson's interval. Every other number is a statistic of weighted images, so that scipy's
bootstrap draws an image several times by giving it a weight, and two models on the same images get the
same draw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
CELLS = 2**22  # weights held at once
EXACT = 2000  # images up to which the bootstrap's interval is corrected for bias and skew (BCa)

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Array]  # weights (..., n) -> (...), of one sample or of several
Method: TypeAlias = Literal["BCa", "basic", "percentile"]


@dataclass(frozen=True)
class Number:
    """An estimate, its 95 % interval, and of how many it is: `count` of `n` where it is a share.

    NaN where nothing can be said.
    """

    estimate: float
    low: float
    high: float
    n: int
    count: int | None = None

    @property
    def beyond_zero(self) -> bool:
        """Whether the interval leaves 0 out: of a difference, whether there is one."""
        return self.low > 0 or self.high < 0


UNKNOWN = Number(math.nan, math.nan, math.nan, 0)


def percent(value: float, *, digits: int = 0) -> str:
    """A share as people write it: all and none are said of all and none alone.

    >>> percent(0.824), percent(0.004, digits=1), percent(0.996), percent(1.0)
    ('82 %', '0.4 %', '99.6 %', '100 %')
    """
    while digits < 3 and 0 < round(value, 9) < 1 and float(f"{100 * value:.{digits}f}") in (0, 100):
        digits += 1
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "not known"


def tell_share(number: Number) -> str:
    """A share with its interval.

    >>> tell_share(Number(0.82, 0.75, 0.87, 155, 127)), tell_share(Number(0.004, 0.001, 0.008, 2000, 8))
    ('82 % (75–87 %)', '0.4 % (0.1–0.8 %)')
    """
    digits = int(number.n >= 1000)
    middle = percent(number.estimate, digits=digits)
    if not all(map(math.isfinite, (number.estimate, number.low, number.high))):
        return middle
    low, high = (percent(end, digits=digits) for end in (number.low, number.high))
    return f"{middle} ({low.removesuffix(' %')}–{high})"


def tell_count(number: Number) -> str:
    """Of how many a share is, with the interval.

    >>> tell_count(Number(0.82, 0.75, 0.87, 155, 127))
    '127 of 155, 82 % (75–87 %)'
    """
    told = tell_share(number)
    return told if number.count is None else f"{number.count} of {number.n}, {told}"


def share(of: ArrayLike) -> Number:
    """The share of true entries, with Wilson's interval (Wilson 1927).

    >>> number = share([True] * 8 + [False] * 2)
    >>> number.count, number.n, round(number.low, 3), round(number.high, 3)
    (8, 10, 0.49, 0.943)
    """
    mask = np.asarray(of, dtype=bool)
    if not mask.size:
        return UNKNOWN
    count, n = int(mask.sum()), mask.size
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    middle, half = count + z * z / 2, z * math.sqrt(count * (n - count) / n + z * z / 4)
    low, high = ((middle + way * half) / (n + z * z) for way in (-1, 1))
    return Number(count / n, low if count else 0.0, high if count < n else 1.0, n, count)


def mean(values: ArrayLike, *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Number:
    """The mean, with a bootstrap's interval.

    Where all values are equal there is nothing to draw from: then as many others as Wilson's interval
    allows may lie anywhere within the bounds.

    >>> mean([0.5] * 30, bounds=(0, 1)).estimate
    0.5
    """
    known = np.asarray(values, dtype=np.float64)
    return number(lambda w: w @ known / w.sum(axis=-1), len(known), bounds=bounds)


def number(
    statistic: Statistic,
    *sizes: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    method: Method = "BCa",
) -> Number:
    """A statistic of weighted images at weights of 1, with a bootstrap's interval.

    >>> number(ratio([0.0, 1.0, 5.0], [True, True, False]), 3).estimate
    0.5

    Args:
        statistic: weights (..., n) of each sample -> (...); NaN where a draw allows none.
        sizes: images in each sample, which are drawn apart.
        bounds: what the statistic cannot leave.
        method: scipy's; BCa becomes "percentile" beyond EXACT images, where they hardly differ.
    """
    if not all(sizes):
        return UNKNOWN
    estimate = float(statistic(*(np.ones(n) for n in sizes)))
    if min(sizes) < 2 or not math.isfinite(estimate):
        return Number(estimate, math.nan, math.nan, sum(sizes))

    def of_draws(*drawn: NDArray[np.int64], axis: int = -1) -> Array:
        found = statistic(*(_weights(part, n) for part, n in zip(drawn, sizes, strict=True)))
        return np.where(np.isfinite(found), found, estimate)

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            [np.arange(n) for n in sizes],
            of_draws,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, CELLS // sum(sizes)),
            confidence_level=LEVEL,
            method="percentile" if method == "BCa" and sum(sizes) > EXACT else method,
            rng=np.random.default_rng(SEED),
        )
    low, high = (float(end) for end in found.confidence_interval)
    if np.ptp(found.bootstrap_distribution) <= 1e-12 * max(1.0, abs(estimate)):
        low, high = _of_constant(estimate, sum(sizes), bounds)
    elif not (math.isfinite(low) and math.isfinite(high)):  # BCa has no answer at an edge
        low, high = np.quantile(found.bootstrap_distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = (float(np.clip(end, *bounds)) for end in (low, high))
    return Number(estimate, low, high, sum(sizes))


def crossing(epsilons: Sequence[float], lost: Sequence[Number], level: float) -> Number:
    """The budget at which a rising share reaches a level, between the budgets measured.

    The interval holds every budget at which the share's own interval holds the level. A number at the
    smallest budget means "that or less", one at the largest "that or more": nothing is extrapolated.

    >>> lost = [Number(e, e - 0.2, e + 0.2, 10, 0) for e in (0.2, 0.6)]
    >>> found = crossing([1.0, 2.0], lost, 0.5)
    >>> round(found.estimate, 3), round(found.low, 3), round(found.high, 3)
    (1.75, 1.25, 2.0)
    """
    if not lost or any(math.isnan(of.estimate) for of in lost):
        return UNKNOWN
    ends = ([of.estimate for of in lost], [of.high for of in lost], [of.low for of in lost])
    middle, low, high = (_reach(epsilons, np.maximum.accumulate(end), level) for end in ends)
    return Number(middle, low, high, lost[0].n)


def _reach(epsilons: Sequence[float], rising: Array, level: float) -> float:
    after = int(np.searchsorted(rising, level))  # the first that is at the level or above
    if after in (0, len(rising)):
        return epsilons[min(after, len(rising) - 1)]
    (a, b), (low, high) = epsilons[after - 1 : after + 1], rising[after - 1 : after + 1]
    return float(a + (b - a) * (level - low) / (high - low))


def ratio(values: ArrayLike, of: ArrayLike) -> Statistic:
    """The weighted mean of values over the images that `of` holds, as a statistic."""
    chosen = np.asarray(of, dtype=np.float64)
    parts = np.asarray(values, dtype=np.float64) * chosen

    def statistic(w: Array) -> Array:
        return _divide(w @ parts, w @ chosen)

    return statistic


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The first statistic minus the second, at the same images drawn."""

    def statistic(*w: Array) -> Array:
        return first(*w) - second(*w)

    return statistic


def ece(confidence: ArrayLike, right: ArrayLike, *, bins: int = 15) -> Statistic:
    """Σ_b |Σ_{i in b} w_i (confidence_i − right_i)| / Σ w: `metrics.ece` of weighted images."""
    top, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    edges = np.arange(1, bins) / bins
    off = np.zeros((len(top), bins))
    off[np.arange(len(top)), np.searchsorted(edges, top, side="left")] = top - hit
    return lambda w: _divide(np.abs(w @ off).sum(axis=-1), w.sum(axis=-1))


def of_ece(confidence: ArrayLike, right: ArrayLike) -> Number:
    """The expected calibration error, with an interval that rather holds too much.

    A sum of absolute values is overestimated, the more so the better a model is calibrated, and draws
    from the sample overestimate once more: the interval spans the percentiles of the draws and those
    percentiles mirrored at the estimate ("basic"), of which one or the other alone can fail.
    """
    statistic, n = ece(confidence, right), np.size(confidence)
    plain, mirrored = (number(statistic, n, bounds=(0, 1), method=m) for m in ("percentile", "basic"))
    return Number(plain.estimate, min(plain.low, mirrored.low), max(plain.high, mirrored.high), n)


def auroc(sure_right: ArrayLike, sure_wrong: ArrayLike) -> Statistic:
    """The chance that a right answer is surer than a wrong one, ties half: of two weighted samples."""
    right, wrong = (np.asarray(v, dtype=np.float64) for v in (sure_right, sure_wrong))
    order = wrong.argsort()
    sides = [np.searchsorted(wrong[order], right, side=side) for side in ("left", "right")]

    def statistic(w: Array, v: Array) -> Array:
        zero = np.zeros((*v.shape[:-1], 1))
        below = np.concatenate([zero, v[..., order].cumsum(axis=-1)], axis=-1)
        beaten = (below[..., sides[0]] + below[..., sides[1]]) / 2
        return _divide((w * beaten).sum(axis=-1), w.sum(axis=-1) * v.sum(axis=-1))

    return statistic


def aurc(confidence: ArrayLike, right: ArrayLike) -> Statistic:
    """Mean share of wrong answers among the k surest, k = 1 … Σw ≤ n, wrong ones first among equals
    (Geifman et al. 2019); weights are whole numbers, an image of weight 2 being there twice.
    """
    top, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    order = np.lexsort((hit, -top))
    wrong = ~hit[order]
    harmonic = np.concatenate([[0.0], (1 / np.arange(1, len(top) + 1)).cumsum()])  # Σ 1/k

    def statistic(w: Array) -> Array:
        copies = w[..., order]
        upto, errors = copies.cumsum(axis=-1), (copies * wrong).cumsum(axis=-1)
        before, errors_before = upto - copies, errors - copies * wrong
        # e(k)/k is e/k along the copies of a right answer, and (e + k − c)/k along those of a wrong one
        steps = harmonic[upto.astype(np.int64)] - harmonic[before.astype(np.int64)]
        sums = steps * np.where(wrong, errors_before - before, errors_before) + copies * wrong
        return _divide(sums.sum(axis=-1), w.sum(axis=-1))

    return statistic


def _weights(drawn: NDArray[np.int64], n: int) -> Array:
    """How often each of n images was drawn (..., n)."""
    rows = drawn.reshape(-1, drawn.shape[-1])
    places = rows + n * np.arange(len(rows))[:, None]
    counts = np.bincount(places.ravel(), minlength=n * len(rows))
    return counts.reshape(*drawn.shape[:-1], n).astype(np.float64)


def _of_constant(value: float, n: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """What a mean may be of which n equal values were seen: those unseen lie within the bounds."""
    others = share(np.zeros(n)).high
    low, high = (value + others * (end - value) for end in bounds)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)


def _divide(over: Array, under: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Any = np.divide(over, under)
    return np.asarray(found, dtype=np.float64)

"""The worst that metrics can be when every confidence is only known to lie in an interval.

An attacker that keeps the labels chooses each confidence v of [lower, upper], by itself. Bounds (n,) of the
predicted class's probability, `right` (n,) whether the prediction is the true label; NaN for no rows.
"""

import math

import numpy as np
import torch
from torch import Tensor

from poise.checks import InputError, check_count, check_number
from poise.shapes import Mask, PerSample

CHUNK = 2**22  # numbers held at once


def referral(lower: PerSample, upper: PerSample, right: Mask, *, threshold: float) -> float:
    """The largest share of right answers whose confidence is below the threshold; NaN for none right.

    >>> low, high, right = torch.tensor([0.6, 0.8]), torch.tensor([0.9, 0.9]), torch.tensor([True, True])
    >>> referral(low, high, right, threshold=0.7)
    0.5
    """
    low, _, right = _check(lower, upper, right)
    check_number("threshold", threshold, 0, 1)
    return float((low[right] < threshold).double().mean())


def brier(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """The largest mean (v − right)² of the top label.

    >>> round(brier(torch.tensor([0.5, 0.1]), torch.tensor([0.9, 0.5]), torch.tensor([True, False])), 6)
    0.25
    """
    return float(((_worst(lower, upper, right) - right.double()) ** 2).mean())


def brier_of_classes(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """A bound of the largest mean Σ_k (p_k − 1(k = y))², in [0, 2].

    A right answer: the rest 1 − v is worst on one class, 2(1 − v)². A wrong one: all of it on other wrong
    classes, none of which exceeds v: ⌊1/v⌋ of them at v, and one with what is left.

    >>> round(brier_of_classes(torch.tensor([0.75]), torch.tensor([0.75]), torch.tensor([False])), 6)
    1.625
    """
    v, right = _worst(lower, upper, right), right.bool()
    many = (1 / v).floor()
    wrong = 1 + many * v**2 + (1 - many * v) ** 2
    return float(torch.where(right, 2 * (1 - v) ** 2, wrong).mean())


def nll(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """The largest mean −log v of right answers and −log(1 − v) of wrong ones.

    >>> round(nll(torch.tensor([0.5]), torch.tensor([0.9]), torch.tensor([True])), 4)
    0.6931
    """
    v = _worst(lower, upper, right)
    return float(-torch.where(right.bool(), v.log(), (-v).log1p()).mean() + 0.0)


def auroc(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """The smallest chance that a right answer is surer than a wrong one, ties half; NaN without both.

    >>> low, high = torch.tensor([0.6, 0.8, 0.1]), torch.tensor([1.0, 1.0, 0.7])
    >>> auroc(low, high, torch.tensor([True, True, False]))
    0.5
    """
    v, right = _worst(lower, upper, right), right.bool()
    wrong, sure = v[~right].sort().values, v[right]
    below, to = (torch.searchsorted(wrong, sure, right=side).double() for side in (False, True))
    return float((below + to).mean() / (2 * len(wrong))) if len(wrong) else math.nan


def aurc(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """The largest mean share of wrong answers among the k surest, k = 1 … n (Geifman et al. 2019).

    Of equals the wrong ones come first.

    >>> aurc(torch.tensor([0.6, 0.5]), torch.tensor([0.9, 0.7]), torch.tensor([True, False]))
    0.75
    """
    v, right = _worst(lower, upper, right), right.bool()
    wrong = (~right[torch.from_numpy(np.lexsort((right.numpy(), -v.numpy())))]).double()
    return float((wrong.cumsum(0) / torch.arange(1, len(v) + 1)).mean())


def ece_bound(lower: PerSample, upper: PerSample, right: Mask) -> float:
    """A bound of the expected calibration error, whatever the bins: the largest mean |v − right|.

    >>> round(ece_bound(torch.tensor([0.5]), torch.tensor([0.75]), torch.tensor([False])), 6)
    0.75
    """
    return float((_worst(lower, upper, right) - right.double()).abs().mean())


def ece(lower: PerSample, upper: PerSample, right: Mask, *, bins: int = 15) -> float:
    """The largest expected calibration error, exactly: the least number that no choice of v exceeds.

    n·ECE = Σ_b |Σ_{i in b} (v_i − right_i)| is the largest Σ_i σ_b(i) (v_i − right_i) over signs σ of the
    bins, and for given signs each image chooses its bin and v by itself. All 2^bins signs are gone
    through, the lower and the upper half of the bins apart. Bins are equal-width, closed on the right.

    >>> low, high = torch.tensor([0.6, 0.8, 0.5, 0.3]), torch.tensor([0.9, 0.95, 0.7, 0.99])
    >>> [round(ece(low, high, torch.tensor([True, True, False, True]), bins=b), 6) for b in (2, 5)]
    [0.4, 0.5]
    """
    low, high, right = _check(lower, upper, right)
    check_count("bins", bins, 1, 20)
    edges = (torch.arange(bins + 1, dtype=torch.float64) / bins).to(lower.dtype).double()  # rounded alike
    least, most = (torch.maximum(low[:, None], edges[:-1]), torch.minimum(high[:, None], edges[1:]))
    meets = (low[:, None] <= edges[1:]) & ((high[:, None] > edges[:-1]) | (edges[:-1] == 0))
    up, down = (most - right[:, None].double()), (right[:, None].double() - least)
    up, down = (torch.where(meets, values, -torch.inf) for values in (up, down))
    first, second = (
        _best_of(up[:, part], down[:, part]) for part in (slice(bins // 2), slice(bins // 2, bins))
    )
    if not len(low):
        return math.nan
    pieces = second.split(max(1, CHUNK // first.numel()))
    return max(float(torch.maximum(first, piece[:, None]).sum(dim=2).max()) for piece in pieces) / len(low)


def _best_of(up: Tensor, down: Tensor) -> Tensor:
    """(2^b, n): for all signs of b bins, the most that each image can add; −∞ where it meets none."""
    best = up.new_full((1, len(up)), -torch.inf)
    for plus, minus in zip(up.T, down.T, strict=True):
        best = torch.cat([torch.maximum(best, plus), torch.maximum(best, minus)])
    return best


def _worst(lower: PerSample, upper: PerSample, right: Mask) -> PerSample:
    """The end of each interval where an answer is the least calibrated: lower if right, upper if wrong."""
    low, high, right = _check(lower, upper, right)
    return torch.where(right, low, high)


def _check(lower: PerSample, upper: PerSample, right: Mask) -> tuple[PerSample, PerSample, Mask]:
    low, high = lower.double(), upper.double()
    if not (low.ndim == 1 and low.shape == high.shape == right.shape):
        shapes = ", ".join(str(tuple(values.shape)) for values in (lower, upper, right))
        raise InputError(f"lower, upper and right must have one entry an image, got shapes {shapes}")
    if not bool(((low >= 0) & (low <= high) & (high <= 1)).all()):
        raise InputError("lower and upper must hold 0 <= lower <= upper <= 1 for every image")
    return low, high, right.bool()

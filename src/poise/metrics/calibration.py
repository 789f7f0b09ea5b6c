"""How far the confidence is from the accuracy. Bins are equal-width and closed on the right."""

import math
from dataclasses import dataclass

import torch

from poise.checks import check_count, check_probabilities
from poise.shapes import Labels, PerSample, Probabilities


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram's numbers, one entry a bin ((lower, upper], the first holds 0 too)."""

    lower: PerSample
    upper: PerSample
    count: PerSample
    confidence: PerSample  # mean MSP; NaN in an empty bin
    accuracy: PerSample  # NaN in an empty bin


def reliability(probs: Probabilities, y: Labels, *, bins: int = 15) -> Reliability:
    """Count, mean confidence and accuracy in equal-width bins of the MSP (Guo et al. 2017).

    A confidence on an edge falls in the bin below it, whatever the floating type: the edges are
    rounded as the confidences are, so 1/K with K a divisor of `bins` is on its edge exactly.

    >>> r = reliability(torch.tensor([[0.5, 0.5], [0.75, 0.25]]), torch.tensor([0, 0]), bins=2)
    >>> r.count.tolist()
    [1.0, 1.0]
    """
    check_probabilities(probs, y)
    check_count("bins", bins, 1)
    msp, prediction = probs.max(dim=1)
    edges = torch.arange(bins + 1, dtype=torch.float64, device=probs.device) / bins
    inner = edges[1:-1].to(msp.dtype)
    bin_of = torch.bucketize(msp, inner, right=False)  # inner[i-1] < msp <= inner[i]
    count, confidence, accuracy = (
        torch.zeros(bins, dtype=torch.float64, device=probs.device).index_add_(0, bin_of, v.double())
        for v in (torch.ones_like(msp), msp, prediction == y)
    )
    return Reliability(edges[:-1], edges[1:], count, confidence / count, accuracy / count)


def ece(probs: Probabilities, y: Labels, *, bins: int = 15) -> float:
    """Σ_b (n_b / n)·|accuracy_b − confidence_b|, expected calibration error (Guo et al. 2017).

    Top label, L1, equal-width bins (lower, upper]; NaN for no rows. The paper cites Kumar et al.
    2019 for it and names no number of bins.

    >>> ece(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
    0.25
    """
    r = reliability(probs, y, bins=bins)
    if not len(probs):
        return math.nan
    off = (r.accuracy - r.confidence).abs().nan_to_num(0.0)
    return float((r.count / r.count.sum() * off).sum())


def brier(probs: Probabilities, y: Labels) -> float:
    """Mean Σ_k (p_k − 1(k = y))², in [0, 2] (Brier 1950); NaN for no rows.

    >>> brier(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    0.5
    """
    check_probabilities(probs, y)
    p = probs.double()
    right = p.gather(1, y.long()[:, None])[:, 0]
    return float(((p**2).sum(dim=1) - 2 * right + 1).mean())


def nll(probs: Probabilities, y: Labels) -> float:
    """Mean −log p_y in nats, the negative log-likelihood; infinite where p_y is 0; NaN for no rows.

    >>> nll(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    0.0
    """
    check_probabilities(probs, y)
    return float(-probs.double().gather(1, y.long()[:, None]).log().mean() + 0.0)

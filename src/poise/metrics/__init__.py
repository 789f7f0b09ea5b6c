"""Metrics: of probabilities against labels, and of attacked images against clean ones."""

from collections.abc import Callable, Mapping

from torch import Tensor

from poise.metrics import certified
from poise.metrics.calibration import Reliability, brier, ece, nll, reliability
from poise.metrics.confidence import accuracy, confidence, label_kept
from poise.metrics.perturbation import delta_w, l2, linf, ssim

CALIBRATION: Mapping[str, Callable[..., float]] = {  # (probs (n, k), y (n,)) -> a number
    "accuracy": accuracy,
    "confidence": confidence,
    "ece": ece,
    "brier": brier,
    "nll": nll,
}
PERTURBATION: Mapping[str, Callable[..., Tensor]] = {  # (x_adv, x) -> (n,)
    "delta_w": delta_w,
    "ssim": ssim,
    "linf": linf,
    "l2": l2,
}
METRICS: Mapping[str, Callable[..., float | Tensor]] = {
    **CALIBRATION,
    "label_kept": label_kept,  # (clean (n, k), attacked (n, k)) -> a number
    **PERTURBATION,
}

__all__ = [
    "CALIBRATION",
    "METRICS",
    "PERTURBATION",
    "Reliability",
    "accuracy",
    "brier",
    "certified",
    "confidence",
    "delta_w",
    "ece",
    "l2",
    "label_kept",
    "linf",
    "nll",
    "reliability",
    "ssim",
]

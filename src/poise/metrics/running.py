"""The same numbers batch by batch, as torchmetrics has them: for others' loops, on several devices too."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from poise.checks import check_count, check_probabilities
from poise.metrics.calibration import reliability
from poise.metrics.confidence import confidence, label_kept
from poise.shapes import Labels, Probabilities


class CalibrationError(Metric):
    """`poise.metrics.ece` of all batches together, however they are cut.

    >>> error = CalibrationError()
    >>> error.update(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    >>> error.update(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
    >>> round(float(error.compute()), 6)
    0.25
    """

    higher_is_better = False
    full_state_update = False
    count: Tensor
    sure: Tensor
    right: Tensor

    def __init__(self, *, bins: int = 15) -> None:
        super().__init__()
        check_count("bins", bins, 1)
        self.bins = bins
        for name in ("count", "sure", "right"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Probabilities, y: Labels) -> None:
        """Count a batch (n, classes) and its labels (n,)."""
        found = reliability(probs, y, bins=self.bins)
        self.count += found.count
        self.sure += (found.count * found.confidence).nan_to_num(0.0)
        self.right += (found.count * found.accuracy).nan_to_num(0.0)

    def compute(self) -> Tensor:
        """The error over all batches so far; NaN for none."""
        return (self.sure - self.right).abs().sum() / self.count.sum()


class _Mean(Metric):
    """The mean over rows of what a function says of a batch."""

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _count(self, mean: float, rows: int) -> None:
        if rows:
            self.total += mean * rows
            self.rows += rows

    def compute(self) -> Tensor:
        """The mean over all rows so far; NaN for none."""
        return self.total / self.rows


class AttackedConfidence(_Mean):
    """`poise.metrics.confidence` of attacked images, over the answers that the attack left as they were.

    >>> held = AttackedConfidence()
    >>> held.update(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([[0.6, 0.4], [0.2, 0.8]]))
    >>> round(float(held.compute()), 6)
    0.6
    """

    higher_is_better = True

    def update(self, clean: Probabilities, attacked: Probabilities) -> None:
        """Count a batch's probabilities (n, classes), before and after."""
        check_probabilities(clean)
        check_probabilities(attacked)
        kept = attacked[clean.argmax(dim=1) == attacked.argmax(dim=1)]
        self._count(confidence(kept), len(kept))


class LabelKept(_Mean):
    """`poise.metrics.label_kept` of all batches together.

    >>> kept = LabelKept()
    >>> kept.update(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([[0.6, 0.4], [0.2, 0.8]]))
    >>> float(kept.compute())
    0.5
    """

    higher_is_better = True

    def update(self, clean: Probabilities, attacked: Probabilities) -> None:
        """Count a batch's probabilities (n, classes), before and after."""
        self._count(label_kept(clean, attacked) if len(clean) else 0.0, len(clean))

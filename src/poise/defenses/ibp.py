"""Training on the worst that interval bounds allow (Gowal et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise.attacks.common import wide
from poise.certify.bounds import Bounds, Linf
from poise.certify.network import READERS, Reader, batch_norm, read
from poise.checks import check_number, settle
from poise.shapes import Images, Labels, Model, Scalar

CLEAN = 0.25  # share of the warm-up before the first interval
TRAINING: Mapping[str, Reader] = {**READERS, "batch_norm": batch_norm(by_batch=True)}


@dataclass(frozen=True)
class IntervalTraining:
    """κ·CE(z) + (1 − κ)·CE(z′), z′_j = z_y + max (z_j − z_y), the largest that intervals allow in the ball.

    The second is −log of the probability of y that intervals certify. While eps rises to `full`, over the
    epochs of `eps_warmup`, training is clean in the first quarter; then the radius grows from 0 and κ falls
    from 1 to `clean`. Without a warm-up, or at a high learning rate, nets collapse to one class.

    Args:
        eps: radius of the L∞ ball, in pixel units.
        clean: κ at the end.
        full: eps at the end.
    """

    eps: float
    clean: float
    full: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("eps", self.eps, 0, 1, hint="eps is in pixel units of [0, 1], e.g. 8/255")
        check_number("clean", self.clean, 0, 1, hint="it is the share of clean cross-entropy (κ)")

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        network, logits = read(model, x, TRAINING)
        logits = wide(logits)
        risen = max(0.0, self.eps / self.full - CLEAN) / (1 - CLEAN) if self.full else 1.0
        kappa = 1 - (1 - self.clean) * risen
        with torch.autocast(x.device.type, enabled=False):
            bounds = Bounds.by_intervals(network, Linf(x, self.full * risen))
            one = torch.eye(logits.shape[1], dtype=x.dtype, device=x.device)
            worst = -bounds.of_logits(one[y][:, None] - one, through=False)
        return kappa * F.cross_entropy(logits, y) + (1 - kappa) * F.cross_entropy(worst, y)


def ibp(*, eps: float = 8 / 255, clean: float = 0.5) -> IntervalTraining:
    """Cross-entropy of interval bounds' worst logits, half of it clean at the end (Gowal et al. 2018).

    >>> ibp(eps=0.1)
    IntervalTraining(eps=0.1, clean=0.5, full=0.1)
    """
    return IntervalTraining(eps, clean, eps)

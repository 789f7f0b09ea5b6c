"""The L2 attack of Carlini & Wagner 2017: the length of the change against the lead of the label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, check_finite, gradient_of, look_at, wide
from poise.checks import check_count, check_number, settle
from poise.modes import ask, differentiable
from poise.objectives import lead
from poise.shapes import Images, Labels, Mask, Model, PerSample, per_image
from poise.threat import reach

# tanh spans a box 0.1 wider than [0, 1] on each side, and w is held where x stays in [0, 1]. A box of
# [0, 1] itself has slope 0 at its edge: black and white pixels could not move, however it is shrunk.
HALF, EDGE = 0.6, math.atanh(0.5 / 0.6)


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Minimise ‖δ‖² + c·max(z_y − max_{j≠y} z_j + confidence, 0) by Adam, with x + δ = tanh of w.

    The constant c is searched for image by image: times or over 10 while only one side of the right
    one is known, halfway in its logarithm after. `binary_search` × `steps` gradients an image. For one
    c, w can move by lr·steps / 2, and 2.4 is all the way from black to white.
    """

    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=False, wants="mislabel", nearest=True)
    uses_labels = property(takes_true_labels)
    norm: ClassVar[str] = "l2"

    steps: int  # gradients for every c
    confidence: float  # by how much another logit must lead that of y
    binary_search: int  # how many c are tried
    lr: float  # Adam's first step length in w
    initial: float  # the first c
    eps: float | None  # the longest L2 change that is returned, None for any

    def __post_init__(self) -> None:
        settle(self)
        check_count("steps", self.steps)
        check_number("confidence", self.confidence, 0, hint="it is a difference of logits")
        check_count("binary_search", self.binary_search, 1)
        check_number("lr", self.lr, 0)
        check_number("initial", self.initial, 1e-12, 1e12)
        check_number("eps", 0 if self.eps is None else self.eps, 0)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        """The nearest misclassified images found, x where none was; refusals are those of `Descent`."""
        with differentiable(model):
            _, logits, y = look_at(model, x, y)
            lost = lead(wide(logits.detach()), y) < -self.confidence
            zero = torch.zeros_like(lost, dtype=torch.promote_types(x.dtype, torch.float32))
            longest = math.inf if self.eps is None else reach("l2", self.eps, x)
            best, length = x, (zero.double() + longest).where(~lost, 0)
            c, low, high = zero + self.initial, zero, zero + math.inf
            for _ in range(self.binary_search):
                best, length, found = self._descend(model, x, y, c, best, length)
                low, high = torch.where(found, low, c), torch.where(found, c, high)
                c = torch.where(low > 0, (low * high).sqrt(), high / 10).where(high.isfinite(), low * 10)
            return best

    def _descend(
        self, model: Model, center: Images, y: Labels, c: PerSample, best: Images, length: PerSample
    ) -> tuple[Images, PerSample, Mask]:
        """The nearest misclassified images so far, their distances, and whether this c gave any."""
        start = center.to(c.dtype)
        w = ((start - 0.5) / HALF).atanh()
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        found, finite = c < 0, c > 0
        for t in range(1, self.steps + 1):
            u = w.tanh()
            seen = (0.5 + HALF * u).clamp(0, 1).to(center.dtype).requires_grad_()  # clamps only rounding
            ahead = lead(wide(ask(model, seen)), y)
            slope = gradient_of(ahead.sum(), seen).to(c.dtype)
            ahead, seen = ahead.detach(), seen.detach()
            delta, lost = seen - start, ahead < -self.confidence
            found, finite = found | lost, finite & torch.isfinite(ahead + slope.flatten(1).sum(dim=1))
            far = torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)
            nearer = lost & (far <= length)
            best, length = torch.where(per_image(nearer), seen, best), torch.where(nearer, far, length)
            # c comes after the backward pass, which it would overflow in half precision.
            slope = (2 * delta + per_image(c.where(~lost, 0)) * slope) * HALF * (1 - u.square())
            mean, square = mean.lerp(slope, 0.1), square.lerp(slope.square(), 0.001)
            size = (square / (1 - 0.999**t)).sqrt() + 1e-8
            rate = self.lr * (1 - t / (self.steps + 1))  # falling, to come to rest near the boundary
            w = (w - rate / (1 - 0.9**t) * mean / size).clamp(-EDGE, EDGE)
        check_finite(finite)
        return best, length, found


def cw(
    *,
    eps: float | None = None,
    steps: int = 100,
    confidence: float = 0.0,
    binary_search: int = 9,
    lr: float = 0.03,
    initial: float = 0.1,
) -> CarliniWagner:
    """The nearest misclassified image in L2, by descent on length and lead (Carlini & Wagner 2017).

    >>> cw().steps * cw().binary_search  # gradients an image
    900
    """
    return CarliniWagner(
        steps=steps, confidence=confidence, binary_search=binary_search, lr=lr, initial=initial, eps=eps
    )

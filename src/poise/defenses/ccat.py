"""Confidence-calibrated adversarial training (Stutz et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, check_differentiable, check_finite, gradient_of, wide
from poise.checks import InputError, check_count, check_logits, check_number, settle
from poise.defenses.common import source, together
from poise.draws import Draw
from poise.modes import ask, differentiable
from poise.objectives import rival
from poise.shapes import Images, Labels, Model, PerSample, Scalar, per_image
from poise.threat import Linf, check_step


@dataclass(frozen=True, kw_only=True)
class LargestWrong:
    """Raise the largest probability of a wrong class by momentum and backtracking (Stutz et al. 2020).

    From a random point, whose distance in L∞ is uniform up to eps. The direction is
    v ← momentum·v + (1 − momentum)·sign(g); a step that lowers the probability is taken back and the
    image's step size divided by `shrink`; the logarithm is climbed, whose gradient does not vanish.
    `steps` + 1 forwards, `steps` backwards.
    """

    ball: Linf
    step: float
    steps: int
    momentum: float = 0.9
    shrink: float = 1.5
    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=False, wants="mislabel")
    uses_labels = property(takes_true_labels)

    def __post_init__(self) -> None:
        settle(self)
        check_step(self.step, self.ball)
        check_count("steps", self.steps)
        check_number("momentum", self.momentum, 0, 1)
        check_number("shrink", self.shrink, 1)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        if y is None:
            raise InputError("y must be given: the wrong classes are those besides the true label")
        at = self.start(x, Draw.of(x, generator))
        height, grad = _height(model, at, y, check=True)
        ball = self.ball.held(x)
        size, way = torch.full_like(height, self.step), torch.zeros_like(at)
        for t in range(1, self.steps + 1):
            assert grad is not None
            way = self.momentum * way + (1 - self.momentum) * grad.sign()
            new = ball.project(at + (per_image(size) * way).to(x.dtype), x)
            reached, new_grad = _height(model, new, y, grad=t < self.steps)
            better = reached >= height
            at, height = torch.where(per_image(better), new, at), torch.where(better, reached, height)
            size = torch.where(better, size, size / self.shrink)
            if new_grad is not None:
                grad = torch.where(per_image(better), new_grad, grad)
        check_finite(torch.isfinite(height))
        return at

    def start(self, x: Images, draw: Draw) -> Images:
        """u·eps from x in L∞, u uniform on (0, 1), in a direction of normal numbers."""
        way = draw.normal(x)
        largest = way.flatten(1).abs().amax(dim=1)
        far = self.ball.eps * draw.uniform_each(largest) / largest
        return self.ball.project(x + per_image(far) * way, x)


def _height(
    model: Model, x: Images, y: Labels, *, grad: bool = True, check: bool = False
) -> tuple[PerSample, Images | None]:
    """max_{j≠y} log p_j of every image, and its gradient where asked for."""
    with differentiable(model):
        x = x.detach().requires_grad_(grad)
        logits = ask(model, x)
        if check:
            check_logits(logits, len(x), y)
        height = rival(wide(logits).log_softmax(dim=1), y)
        if grad:
            check_differentiable(height)
        return height.detach(), gradient_of(height.sum(), x) if grad else None


@dataclass(frozen=True)
class ConfidenceCalibrated:
    """Mean cross-entropy of a batch whose first half is clean and whose other half is attacked.

    The target of an attacked image is (1 − g)·onehot(y) + g/K with g = 1 − (1 − min(1, ‖δ‖∞/eps))^rho:
    at the edge of the ball the uniform distribution. An odd image more is attacked.

    Args:
        attack: gives x + δ.
        rho: how fast the target goes over to the uniform.
    """

    attack: LargestWrong
    rho: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("rho", self.rho, 0)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        half = len(x) // 2
        x_adv = self.attack(model, x[half:], y[half:], generator=source(generator))
        logits = torch.cat(together(model, x[:half], x_adv))
        moved = (x_adv - x[half:]).flatten(1).abs().amax(dim=1)
        share = torch.cat([moved.new_zeros(half), self.uniform_share(moved)])
        share = share.to(logits.dtype)[:, None]
        onehot = F.one_hot(y, logits.shape[1]).to(logits.dtype)
        return F.cross_entropy(logits, (1 - share) * onehot + share / logits.shape[1])

    def uniform_share(self, moved: Tensor) -> Tensor:
        """g, the mass that goes evenly to all classes, for images moved that far in L∞.

        >>> defense = ccat(eps=0.5, rho=2)
        >>> defense.uniform_share(torch.tensor([0.0, 0.25, 0.5])).tolist()
        [0.0, 0.75, 1.0]
        """
        eps = self.attack.ball.eps
        near = (1 - moved / eps).clamp_min(0) if eps else torch.ones_like(moved)
        return 1 - near**self.rho


def ccat(
    *,
    eps: float = 8 / 255,
    step: float = 0.005,
    steps: int = 40,
    momentum: float = 0.9,
    shrink: float = 1.5,
    rho: float = 10.0,
) -> ConfidenceCalibrated:
    """CCAT: less confidence the farther an image was attacked, up to the uniform (Stutz et al. 2020).

    Step and number of steps are those of its authors; give steps=10 for the cost of the others.

    >>> ccat().attack.steps
    40
    """
    check_count("steps", steps, 1)
    attack = LargestWrong(ball=Linf(eps), step=step, steps=steps, momentum=momentum, shrink=shrink)
    return ConfidenceCalibrated(attack, rho)

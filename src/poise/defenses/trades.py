"""TRADES (Zhang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise.attacks.common import clean_logits
from poise.attacks.descent import Descent
from poise.checks import check_count, check_number, settle
from poise.defenses.common import kl, together
from poise.draws import Draw
from poise.rules import Always
from poise.shapes import Images, Labels, Logits, Model, PerSample, Scalar
from poise.threat import Ball, Linf, ball_round, check_step


@dataclass(frozen=True)
class Near:
    """A ball whose random point is its centre plus normal noise, where KL has no gradient of its own.

    >>> x = torch.full((1, 1, 8, 8), 0.5)
    >>> bool((Near(Linf(0.1), 1e-3).sample(x, Draw.of(x)) - x).abs().max() < 0.01)
    True
    """

    ball: Ball
    noise: float  # standard deviation, in pixel units

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        return self.ball.project(x, center, draw)

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        return self.ball.steepest(grad, draw)

    def held(self, center: Images) -> Near:
        return Near(ball_round(self.ball, center), self.noise)

    def sample(self, center: Images, draw: Draw) -> Images:
        return self.ball.project(center + self.noise * draw.normal(center), center, draw)


@dataclass(frozen=True)
class Trades:
    """CE(f(x), y) + beta · KL(f(x)‖f(x′)), x′ the image of the ball where that divergence is large.

    x′ starts at x + noise·N(0, 1) and climbs the divergence, the model in evaluation mode, the clean
    probabilities computed once. The gradient of the loss flows through both x and x′, which pass
    the model together in one forward. From logarithms throughout: saturated logits give no NaN.

    Args:
        beta: weight of the divergence.
        ball: where x′ may go.
        step: size of a step, in pixel units.
        steps: gradients an image.
        noise: standard deviation of the start, in pixel units.
    """

    beta: float
    ball: Ball
    step: float
    steps: int
    noise: float = 1e-3

    def __post_init__(self) -> None:
        settle(self)
        check_number("beta", self.beta, 0)
        check_step(self.step, self.ball)
        check_count("steps", self.steps)
        check_number("noise", self.noise, 0)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        clean, moved = together(model, x, self.attacked(model, x, y, generator))
        divergence = kl(clean.log_softmax(dim=1), moved.log_softmax(dim=1))
        return F.cross_entropy(clean, y) + self.beta * divergence.mean()

    def attacked(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Images:
        """The images x′."""
        log_p = clean_logits(model, x).log_softmax(dim=1)

        def nearness(logits: Logits, y: Labels) -> PerSample:
            return -kl(log_p, logits.log_softmax(dim=1))

        attack = Descent(
            objective=nearness,
            rule=Always(),
            ball=Near(self.ball, self.noise),
            step=self.step,
            steps=self.steps,
            random_start=True,
            uses_labels=True,
        )
        return attack(model, x, y, generator=generator)


def trades(*, eps: float = 8 / 255, step: float = 5 / 255, steps: int = 10, beta: float = 6.0) -> Trades:
    """TRADES: clean cross-entropy and a divergence that the ball must not open (Zhang et al. 2019).

    >>> trades(eps=0.1, step=0.01)
    Trades(beta=6.0, ball=Linf(eps=0.1), step=0.01, steps=10, noise=0.001)
    """
    check_count("steps", steps, 1)
    return Trades(beta, Linf(eps), step, steps)

"""The Auto attack: a walk across the decision boundary that returns only points that keep the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, check_finite, gradient_of, look_at, wide
from poise.checks import check_count, settle
from poise.draws import Draw
from poise.modes import ask, differentiable
from poise.objectives import MARGIN, check_margin, holds, lead, rival
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, per_image
from poise.threat import Ball, ball_round, check_step
from poise.threat import ball as ball_of

FIRST, LAST = 1.5, 0.04  # the lengths of the first and the last step in eps; they fall geometrically
MOMENTUM, BEYOND = 0.3, 0.6  # until the label is lost for the first time, and from then on
FALL, RISE = 0.05, 1.5  # of the greed: at a class that leads for the first time, and at every other step
SHARPNESS, LEAST = 24.0, 3.0  # κ = 24 / standard deviation of the logits at x, at least 3
SECANTS = 5  # forwards after the walk


class Found(NamedTuple):
    """A point of every image, and what it is worth."""

    x: Images
    lead: PerSample  # z_y − max_{j≠y} z_j
    top: PerSample  # max_j p_j, which the attack lowers


class Look(NamedTuple):
    """What one forward pass tells of a batch of images."""

    found: Found
    z: Logits
    kept: Mask  # the label is kept with the margin: the point may be returned


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Lower max_j p_j on both sides of the decision boundary; return only where the label is kept.

    `steps` backwards and `steps` + 6 forwards, no random numbers. The direction in the space of the
    logits z is w = softmax(κ z) − softmax(g z): down with the largest logits, up with the others in
    proportion to softmax(g z). κ is fixed by the spread of z at x. An image's greed g begins at 1,
    where w is nearly the gradient of log max_j p_j, the best for a tight budget. Near 0 it leads to
    the uniform distribution, the best for a loose one. A class that leads for the first time shows that
    one more can be tied, and g falls; when leaders come back, no more than those tie, and g rises again.
    At the end of the walk every image is greedy: step t of T takes g^(1 − (t/(T−1))²).

    Args:
        ball: where the images may go.
        step: the first step's length, in pixel units of [0, 1].
        steps: gradients an image.
        margin: the least lead of p_y over its rival at a point that is returned, x itself excepted.
    """

    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="lower")
    uses_labels = property(takes_true_labels)

    ball: Ball
    step: float
    steps: int
    margin: float = MARGIN

    def __post_init__(self) -> None:
        settle(self)
        check_step(self.step, self.ball)
        check_count("steps", self.steps)
        check_margin(self.margin)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        """The attacked images; arguments and refusals are those of `Descent`, y the labels to keep."""
        with differentiable(model):
            y, best, far, finite = self._walk(model, x, y)
            best = self._approach(model, x, y, best, far, finite)
        check_finite(finite)
        return best.x

    def _walk(self, model: Model, center: Images, y: Labels | None) -> tuple[Labels, Found, Found, Mask]:
        ball, draw, speed = ball_round(self.ball, center), Draw.of(center), torch.zeros_like(center)
        at, logits, y = look_at(model, center, y)
        new = self._look(logits, y, at)
        best = new.found
        far = best._replace(top=torch.full_like(best.top, torch.inf))  # lowest where the label is lost
        sharp = (SHARPNESS / new.z.std(dim=1).clamp_min(1e-6)).clamp_min(LEAST)
        greed = scale = torch.ones_like(best.top)
        momentum, finite = torch.full_like(best.top, MOMENTUM), torch.ones_like(new.kept)
        own = led = torch.arange(new.z.shape[1], device=y.device) == y[:, None]  # classes that ever led
        fall = min(1.0, max(LAST / FIRST, 2.4 * self.steps**-1.5))  # few steps must not shrink too fast
        for t in range(self.steps):
            done = t / max(1, self.steps - 1)
            leader = new.z.argmax(dim=1, keepdim=True)
            known, led = led.gather(1, leader)[:, 0], led.scatter(1, leader, True)
            lost = ~new.kept
            greed = torch.where(known, (RISE * greed).clamp(max=1), FALL * greed)
            scale = torch.where(lost, 0.9 * scale, scale)
            momentum = momentum.masked_fill(lost, BEYOND)
            w = _direction(new.z, y, own, sharp, greed ** (1 - done**2), lost)
            slope = gradient_of(logits, at, w.to(logits.dtype))
            size = slope.abs().flatten(1).mean(dim=1)
            finite &= torch.isfinite(size)  # the sign of NaN is 0, so it would not show in x
            speed = per_image(momentum).to(slope.dtype) * speed + slope / per_image(
                size.masked_fill(size == 0, 1)
            )
            length = self.step * fall**done * scale
            at = at.detach() - per_image(length).to(at.dtype) * ball.steepest(speed)
            at = ball.project(at, center, draw.at(t)).requires_grad_(t + 1 < self.steps)
            logits = ask(model, at)
            new = self._look(logits, y, at)
            finite &= torch.isfinite(new.z).all(dim=1)
            best = _lower(new.kept, new.found, best)
            far = _lower(~new.kept, new.found, far)
        return y, best, far, finite

    @torch.no_grad()
    def _approach(
        self, model: Model, center: Images, y: Labels, best: Found, far: Found, finite: Mask
    ) -> Found:
        """The lowest of some points between `best` and `far`: secants to where the lead is 0.

        Halving the lead of the end that stays (the Illinois rule) moves it at last. Where no label
        was lost, the way goes back to x, which can do no harm.
        """
        start, way = best.x, far.x - best.x
        near, beyond = torch.zeros_like(best.top), torch.ones_like(best.top)
        lead, lack = best.lead, far.lead
        for _ in range(SECANTS):
            share = (lead / (lead - lack)).nan_to_num(0.5).clamp(0.05, 0.95)
            place = near + share * (beyond - near)
            at = self.ball.project(start + per_image(place).to(way.dtype) * way, center, Draw.of(center))
            new = self._look(ask(model, at), y, at)
            finite &= torch.isfinite(new.z).all(dim=1)
            best = _lower(new.kept, new.found, best)
            near, beyond = torch.where(new.kept, place, near), torch.where(new.kept, beyond, place)
            lead = torch.where(new.kept, new.found.lead, lead / 2)
            lack = torch.where(new.kept, lack / 2, new.found.lead)
        return best

    def _look(self, logits: Logits, y: Labels, x: Images) -> Look:
        z = wide(logits.detach())
        found = Found(x.detach(), lead(z, y), z.softmax(dim=1).amax(dim=1))
        kept = holds(z, y, self.margin)
        return Look(found, z, kept if self.margin else kept & (found.lead > 0))


def _lower(allowed: Mask, new: Found, old: Found) -> Found:
    """The new point where it is allowed and lower, image by image."""
    better = allowed & (new.top < old.top)
    x = torch.lerp(old.x, new.x, per_image(better).to(new.x.dtype))  # exact at 0 and 1
    return Found(x, torch.where(better, new.lead, old.lead), torch.where(better, new.top, old.top))


def _direction(z: Logits, y: Labels, own: Mask, sharp: PerSample, greed: PerSample, lost: Mask) -> Logits:
    """The cotangent w (n, k) of one step, of length 1: the walk goes against wᵀ∂z/∂x."""
    sharper, softer = ((k[:, None] * z).log_softmax(dim=1) for k in (sharp, greed))
    # Kept: what the others get, y pays, exactly, and in units of the rival's share, so that nothing
    # vanishes where p_y rounds to 1. Lost: y is raised by name too, for w raises it too little
    # among a thousand classes.
    unit = rival(softer, y).masked_fill(lost, 0)[:, None]
    w = (sharper - unit).exp() - (softer - unit).exp()
    others = w.masked_fill(own, 0)
    w = torch.where(own, torch.where(lost[:, None], w - 0.1, -others.sum(dim=1, keepdim=True)), others)
    return w / w.abs().sum(dim=1, keepdim=True).clamp_min(1e-30)


def auto(*, eps: float = 0.03, steps: int = 20, margin: float = MARGIN, norm: str = "linf") -> Auto:
    """Lowest confidence with the label kept, no step size to choose: the attack to audit with (ours).

    >>> auto(eps=0.1, steps=50).margin
    0.0001
    """
    return Auto(ball=ball_of(norm, eps), step=FIRST * float(eps), steps=steps, margin=margin)

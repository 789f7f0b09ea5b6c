"""The Auto attack: a walk across the decision boundary that returns only points that keep the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch.nn import functional as F

from poise.checks import InputError, check_count, check_images, check_labels, check_logits, check_number
from poise.draws import Draw
from poise.modes import differentiable
from poise.objectives import rival
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, per_image
from poise.threat import Ball, ball

FINAL_STEP = 0.04 / 1.5  # the last step's length, in units of the first: the lengths fall geometrically
MOMENTUM = 0.3
SECANTS = 5  # forwards after the walk


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Lower max_j p_j on both sides of the decision boundary, and return only where the label is kept.

    `steps` backwards and `steps` + 6 forwards; nothing is drawn at random. The direction in the space
    of logits z is w = softmax(κ z) − softmax(g z), where each image has a greed g in (0, 1] and
    κ = 2 · 4^g. At g = 1 it is nearly the gradient of log max_j p_j, the best where the budget is
    tight; near g = 0 it leads to the uniform distribution, the best where the budget is loose. A step
    that loses the label shows a loose budget.

    Args:
        ball: where the images may go.
        step: the first step's length, in pixel units of [0, 1].
        steps: gradients an image.
        margin: the least lead of p_y over its rival at a point that is returned, x itself excepted.
    """

    uses_labels: ClassVar[bool] = False

    ball: Ball
    step: float
    steps: int
    margin: float = 1e-4

    def __post_init__(self) -> None:
        check_number("step", self.step, 0, hint="it is in pixel units of [0, 1], e.g. 5/255")
        check_count("steps", self.steps)
        check_number("margin", self.margin, 0, 1, hint="it is a difference of probabilities")

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images, of the shape, dtype and device of x (n, c, h, w).

        Args:
            model: images in [0, 1] -> logits; left as it was found.
            x: images in [0, 1].
            y: the labels to keep (n,); by default the model's prediction at x.
            generator: plays no part.

        Raises:
            InputError: images, labels or logits that cannot be what they should be.
        """
        check_images(x)
        if y is not None:
            check_labels(y, len(x))
        if self.steps == 0 or len(x) == 0:
            return x.detach().clone()
        with differentiable(model):
            y = None if y is None else y.to(x.device, torch.int64, copy=True)
            return self._search(model, x.detach().clamp(0, 1), y)

    def _search(self, model: Model, center: Images, y: Labels | None) -> Images:
        draw = Draw.of(center)
        at, speed = center, torch.zeros_like(center)
        for t in range(self.steps + 1):
            at = at.detach().requires_grad_(t < self.steps)
            logits = model(at)
            if t == 0:
                check_logits(logits, len(at), y)
                y = logits.argmax(dim=1) if y is None else y
                best = self._look(logits, y, at)
                far = best._replace(top=torch.full_like(best.top, torch.inf))
                greed = scale = torch.ones_like(best.top)
                finite = torch.ones_like(best.kept)
            assert y is not None
            new = self._look(logits, y, at)
            finite &= torch.isfinite(new.z).all(dim=1)
            best = _choose(new.kept & (new.top < best.top), new, best)
            far = _choose(~new.kept & (new.top < far.top), new, far)
            if t == self.steps:
                break
            greed = torch.where(new.kept, (1.25 * greed).clamp(max=1), 0.25 * greed)
            scale = torch.where(new.kept, scale, 0.9 * scale)
            w = _direction(new.z, y, greed, new.kept)
            slope = torch.autograd.grad(logits, at, w.to(logits.dtype))[0]
            speed = MOMENTUM * speed + slope / per_image(_size(slope))  # all slopes count alike
            length = self.step * FINAL_STEP ** (t / max(1, self.steps - 1)) * scale
            at = at.detach() - per_image(length).to(at.dtype) * self.ball.steepest(speed)
            at = self.ball.project(at, center, draw.at(t))
        best = self._approach(model, y, best, far, center, finite)
        if not finite.all():
            raise InputError(
                f"the model's logits or gradients became NaN or infinite for {int((~finite).sum())} of "
                f"{len(center)} images during the attack: look at its weights, or attack in float32"
            )
        return best.x

    @torch.no_grad()
    def _approach(
        self, model: Model, y: Labels, best: Look, far: Look, center: Images, finite: Mask
    ) -> Look:
        """The lowest point on the way from `best` to `far`, by secants on the lead in logits.

        The boundary is where the lead is 0; halving the lead of the end that stays (the Illinois
        rule) keeps a bent lead from holding that end for ever. Where no label was lost, the way goes
        back to x, and nothing found there can do harm.
        """
        start, way = best.x, far.x - best.x
        near, beyond = torch.zeros_like(best.top), torch.ones_like(best.top)
        lead, lack = best.lead, far.lead
        for _ in range(SECANTS):
            share = (lead / (lead - lack)).nan_to_num(0.5).clamp(0.05, 0.95)
            place = near + share * (beyond - near)
            at = self.ball.project(start + per_image(place).to(way.dtype) * way, center, Draw.of(center))
            new = self._look(model(at), y, at)
            finite &= torch.isfinite(new.z).all(dim=1)
            best = _choose(new.kept & (new.top < best.top), new, best)
            near, beyond = torch.where(new.kept, place, near), torch.where(new.kept, beyond, place)
            lead = torch.where(new.kept, new.lead, lead / 2)
            lack = torch.where(new.kept, lack / 2, new.lead)
        return best

    def _look(self, logits: Logits, y: Labels, x: Images) -> Look:
        z = logits.detach()
        z = z.float() if z.dtype in (torch.half, torch.bfloat16) else z
        p, own = z.softmax(dim=1), y[:, None]
        lead = z.gather(1, own)[:, 0] - rival(z, y)
        kept = (lead > 0) & (p.gather(1, own)[:, 0] - rival(p, y) >= self.margin)
        return Look(x.detach(), z, lead, p.amax(dim=1), kept)


class Look(NamedTuple):
    """What one forward pass tells of a batch of images."""

    x: Images
    z: Logits
    lead: PerSample  # z_y − max_{j≠y} z_j
    top: PerSample  # max_j p_j, which the attack lowers
    kept: Mask  # the label is kept with the margin: the point may be returned


def _choose(mask: Mask, new: Look, old: Look) -> Look:
    """The new look where the mask says so, image by image."""
    pairs = zip(new, old, strict=True)
    return Look(*(torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


def _direction(z: Logits, y: Labels, greed: PerSample, kept: Mask) -> Logits:
    """The cotangent w (n, k) of one step, of length 1: the walk goes against wᵀ∂z/∂x."""
    hot = F.one_hot(y, z.shape[1]).to(z.dtype)
    sharp = SHARPNESS
    w = (sharp * z).softmax(dim=1) - (greed[:, None] * z).softmax(dim=1)
    others = w * (1 - hot)
    # Kept: w_y from the other entries, exact where p_y rounds to 1. Lost: raise y by name, which
    # w itself does too little among many classes.
    w = torch.where(kept[:, None], others - others.sum(dim=1, keepdim=True) * hot, w - 0.1 * hot)
    return w / w.abs().sum(dim=1, keepdim=True).clamp_min(1e-30)


def _size(slope: Images) -> PerSample:
    """The mean absolute value of each image's slope, 1 where all of it is 0."""
    mean = slope.abs().flatten(1).mean(dim=1)
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def auto(
    *, eps: float = 0.03, steps: int = 20, margin: float = 1e-4, norm: str = "linf"
) -> Auto:
    """Lowest confidence with the label kept, no step size to choose: the attack to audit with (ours).

    >>> auto(eps=0.1, steps=50)
    Auto(ball=Linf(eps=0.1), step=0.15000000000000002, steps=50, margin=0.0001)
    """
    return Auto(ball=ball(norm, eps), step=1.5 * eps, steps=steps, margin=margin)

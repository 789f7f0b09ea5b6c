"""DeepFool (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the model's linearisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, check_finite, gradient_of, look_at, wide
from poise.checks import check_count, check_number, settle
from poise.modes import ask, differentiable
from poise.naming import known_name
from poise.objectives import rival
from poise.shapes import Images, Labels, Mask, Model, PerSample, per_image
from poise.threat import ball, reach

ORDERS = {"l2": 2.0, "linf": math.inf, "l1": 1.0}
FAR = 1e6  # no step is longer, so that a slope near 0 overflows nothing; also that of a step with no way


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """Add to r the shortest step that a linear model would need to lose y, until y is lost.

    Model and slopes are looked at where x + (1 + overshoot)·r meets [0, 1]. `candidates` − 1
    backwards a step for the whole batch; an image that has lost y stays where it is, and one that
    never does is returned where the last step left it.
    """

    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=False, wants="mislabel", nearest=True)
    uses_labels = property(takes_true_labels)

    steps: int  # the most that an image takes
    overshoot: float  # the share of r that is added to cross the boundary
    norm: str  # the length that is to be short
    eps: float | None  # the longest change that is returned, None for any
    candidates: int  # classes looked at: y, and the likeliest others at x

    def __post_init__(self) -> None:
        settle(self)
        known_name(ORDERS, self.norm, "norm")
        check_count("steps", self.steps)
        check_number("overshoot", self.overshoot, 0)
        check_count("candidates", self.candidates, 2)
        check_number("eps", 0 if self.eps is None else self.eps, 0)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        """The images moved by (1 + overshoot)·r, those within eps; refusals are those of `Descent`."""
        with differentiable(model):
            moved = self._walk(model, x, y)
            if self.eps is None:
                return moved
            delta = moved.double() - x.double()
            far = torch.linalg.vector_norm(delta.flatten(1), ord=ORDERS[self.norm], dim=1)
            return torch.where(per_image(far <= reach(self.norm, self.eps, x)), moved, x)

    def _walk(self, model: Model, center: Images, y: Labels | None) -> Images:
        at, logits, y = look_at(model, center, y)
        others = logits.detach().scatter(1, y[:, None], -math.inf)
        others = others.topk(min(self.candidates, logits.shape[1]) - 1, dim=1).indices
        slack = torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1)  # not to end in a tie
        r = torch.zeros_like(center, dtype=torch.promote_types(center.dtype, torch.float32))
        active = finite = torch.isfinite(slack)
        for _ in range(self.steps):
            z = wide(logits)
            own = z.gather(1, y[:, None])
            finite = finite & torch.isfinite(z).all(dim=1)
            active = active & (own[:, 0] >= rival(z, y))
            if not active.any():
                break
            step, numbers = self._step(own - z.gather(1, others), at, slack)
            finite = finite & (numbers | ~active)
            r = r + torch.where(per_image(active), step, 0)
            at = (center + (1 + self.overshoot) * r).clamp(0, 1).to(center.dtype).requires_grad_()
            logits = ask(model, at)
        check_finite(finite)
        return at.detach()

    def _step(self, leads: Tensor, at: Images, slack: PerSample) -> tuple[Images, Mask]:
        """The shortest step to where one of the leads (n, j) would be 0; whether its slopes are numbers."""
        step = torch.zeros_like(at, dtype=torch.promote_types(at.dtype, torch.float32))
        nearest = torch.full_like(slack, math.inf, dtype=step.dtype)
        finite = torch.isfinite(slack)
        for k, lead in enumerate(leads.unbind(dim=1), 1):
            down = -gradient_of(lead.sum(), at, retain_graph=k < leads.shape[1]).to(step.dtype)
            need = lead.detach() + slack
            if self.norm == "l1":
                tried, slope, distance = pixel_by_pixel(
                    down, need.to(step.dtype), at.detach().to(step.dtype)
                )
            else:
                way = ball(self.norm, 1.0).steepest(down)
                slope = (way * down).flatten(1).sum(dim=1)  # the dual norm of the gradient
                distance = (need / slope).to(step.dtype).clamp(max=FAR)
                tried = per_image(distance) * way
            finite &= torch.isfinite(slope)
            nearer = (slope > 0) & (distance < nearest)
            nearest = torch.where(nearer, distance, nearest)
            step = torch.where(per_image(nearer), tried, step)
        return step, finite


def pixel_by_pixel(up: Images, need: PerSample, at: Images) -> tuple[Images, PerSample, PerSample]:
    """The L1-shortest step within [0, 1] that raises a function of slopes `up` by `need`.

    The pixel of the largest slope moves first, to the edge of the box if that is not enough, then the
    next. Also the largest slopes (n,) and the steps' lengths (n,), FAR where all pixels are not enough.

    >>> up, at = torch.tensor([[[[1.0, -4.0, 2.0]]]]), torch.tensor([[[[0.5, 0.25, 0.5]]]])
    >>> [v.tolist() for v in pixel_by_pixel(up, torch.tensor([1.5]), at)]  # 4 · 0.25 + 2 · 0.25
    [[[[[0.0, -0.25, 0.25]]]], [4.0], [0.5]]
    """
    slopes = up.flatten(1)
    steep, order = slopes.abs().sort(dim=1, descending=True, stable=True)
    room = torch.where(slopes > 0, 1 - at.flatten(1), at.flatten(1)).gather(1, order)
    gain = steep * room
    spent = gain.cumsum(dim=1) - gain
    share = ((need[:, None] - spent) / gain).where(gain > 0, 0).clamp(0, 1)
    step = torch.zeros_like(slopes).scatter(1, order, share * room) * slopes.sign()
    length = (share * room).sum(dim=1).where(gain.sum(dim=1) >= need, FAR)
    return step.reshape(up.shape), steep[:, 0], length


def deepfool(
    *,
    eps: float | None = None,
    steps: int = 50,
    overshoot: float = 0.02,
    norm: str = "l2",
    candidates: int = 10,
) -> DeepFool:
    """The image just across the nearest boundary, in L2, L∞ or L1 (DeepFool, Moosavi-Dezfooli et al. 2016).

    >>> deepfool(norm="linf").overshoot
    0.02
    """
    norm = known_name(ORDERS, norm, "norm")
    return DeepFool(steps=steps, overshoot=overshoot, norm=norm, eps=eps, candidates=candidates)

"""Algorithm 1: one loop for every attack that is an objective, a step rule and a ball."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from poise.attacks.aim import Aim
from poise.attacks.common import check_differentiable, check_finite, check_inputs, gradient_of, wide
from poise.checks import InputError, check_choice, check_count, check_logits, settle
from poise.draws import Draw
from poise.modes import ask, differentiable
from poise.objectives import MARGIN, Objective, wants_of
from poise.rules import Always, StepRule, keeps_label
from poise.shapes import Images, Labels, Mask, Model, PerSample, Point, per_image
from poise.threat import Ball, ball_round, check_step

Keep: TypeAlias = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Minimise an objective by steps inside a ball (Algorithm 1, eqs. 4-6).

    The forward pass of a tried step serves as the next step's, and an image that steps back keeps
    the gradient it has: `steps` + 1 forwards and `steps` backwards, with the same bits as
    by two forwards a step. A random start without y costs one more forward, for the prediction.

    Args:
        objective: (logits (n, k), labels (n,)) -> (n,), minimised.
        rule: whether a step is kept, and the size of the next, per image.
        ball: where the images may go.
        step: the first step's size, in pixel units of [0, 1].
        steps: gradients an image.
        keep: return the "last" point, or the "best": the one with the lowest goal among those
            that keep the label (among all, where the attack is against the true label).
        goal: what the attack is for, where the objective is but a way there; like an objective,
            and by default the objective itself.
        random_start: begin at a random point of the ball; for attacks against the true label only,
            because a walk that keeps the label has to begin where it holds.
        uses_labels: whether y stands for the true label, not for the model's own prediction.
    """

    objective: Objective
    rule: StepRule
    ball: Ball
    step: float
    steps: int
    keep: Keep = "last"
    goal: Objective | None = None
    random_start: bool = False
    uses_labels: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_step(self.step, self.ball)
        check_count("steps", self.steps)
        check_choice("keep", self.keep, ("last", "best"))
        if self.random_start and not self.uses_labels:
            raise InputError(
                "random_start goes with attacks against the true label (uses_labels=True): a walk "
                "that keeps the label begins at x"
            )

    @property
    def aim(self) -> Aim:
        """What follows from its goal, its rule and the labels that it uses."""
        goal = self.goal or self.objective
        kept = keeps_label(self.rule) or (self.keep == "best" and not self.uses_labels)
        wants, target = wants_of(goal), getattr(goal, "target", None)
        return Aim(
            labels="true" if self.uses_labels else "prediction",
            keeps_label=kept,
            wants="mislabel" if self.uses_labels and wants == "lower" and not kept else wants,
            target=target if isinstance(target, float) else None,
        )

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
            y: labels (n,); by default the model's prediction at x.
            generator: the source of random draws; by default seed 0.

        Raises:
            InputError: images, labels or logits that cannot be what they should be.
        """
        path = self.path(model, x, y, generator=generator)
        start = next(path, None)
        if start is None:
            return x.detach().clamp(0, 1)
        goal = self.goal or self.objective
        best, lowest = start.x, goal(start.logits, start.y)
        for at in path:
            if self.keep == "last":
                best = at.x
                continue
            reached = goal(at.logits, at.y)
            better = reached < lowest
            if not self.uses_labels:
                better &= at.logits.argmax(dim=1) == at.y
            best = torch.lerp(best, at.x, per_image(better).to(best.dtype))
            lowest = torch.where(better, reached, lowest)
        return best

    def path(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[Point]:
        """Every point at which the images stand, from the first to the last: steps + 1 of them.

        An image that steps back stands where it stood. Nothing is yielded for steps = 0 or an
        empty batch.
        """
        center, y = check_inputs(x, y)
        if self.steps == 0 or len(x) == 0:
            return
        draw = Draw.of(center, generator)
        start = center
        if self.random_start:
            y = self._point(model, center, None, grad=False, check=True).y if y is None else y
            start = self.ball.sample(center, draw)
        at = self._point(model, start, y, grad=True, check=True)
        ball, size = ball_round(self.ball, center), torch.full_like(at.loss, self.step)
        yield at
        beat = pulse(at).double()  # adds up without overflow
        for t in range(1, self.steps + 1):
            assert at.grad is not None
            way = per_image(size) * ball.steepest(at.grad, draw.at(t))
            moved = ball.project(at.x - way.to(center.dtype), center, draw.at(t))  # eq. 4, downhill
            new = self._point(model, moved, at.y, grad=t < self.steps)
            kept, size = self.rule(at, new, size)
            at = new if self.rule == Always() else choose_points(kept, new, at)  # no copies without need
            beat = beat + pulse(new)
            yield at
        check_finite(torch.isfinite(beat))

    def _point(
        self, model: Model, x: Images, y: Labels | None, *, grad: bool, check: bool = False
    ) -> Point:
        with differentiable(model):  # pass by pass: between two of them the path may be left for good
            return point_at(model, self.objective, x, y, grad=grad, check=check)


def point_at(
    model: Model, objective: Objective, x: Images, y: Labels | None, *, grad: bool, check: bool = False
) -> Point:
    """The point x, by one forward and, with `grad`, one backward; call it inside `differentiable`.

    Args:
        model: images in [0, 1] -> logits.
        objective: (logits (n, k), labels (n,)) -> (n,).
        x: images (n, c, h, w).
        y: labels (n,); None takes the model's prediction.
        grad: whether the objective's gradient is wanted.
        check: refuse logits that cannot be what they should be; it waits for the device.
    """
    with torch.set_grad_enabled(grad):
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_(grad)
        logits = ask(model, x)
        if check:
            check_logits(logits, len(x), y)
        logits = wide(logits)
        y = logits.argmax(dim=1) if y is None else y
        loss = objective(logits, y)
        if grad:
            check_differentiable(loss)
        gradient = gradient_of(loss, x, torch.ones_like(loss)) if grad else None
    return Point(x.detach(), y, logits.detach(), loss.detach(), gradient)


def pulse(point: Point) -> PerSample:
    """A number an image that is finite while loss and gradient are (each slope below 1e32).

    Summed over the steps it tells at the end of every NaN: sign() would make one in the gradient a
    silent 0.
    """
    if point.grad is None:
        return point.loss
    dtype = torch.promote_types(point.grad.dtype, torch.float32)
    return point.loss + point.grad.sum(dim=(1, 2, 3), dtype=dtype)


def choose_points(mask: Mask, new: Point, old: Point) -> Point:
    """The new point where the mask says so, image by image."""
    whole = per_image(mask).to(new.x.dtype)  # lerp is exact at 0 and 1, and twice as fast as where
    return Point(
        torch.lerp(old.x, new.x, whole),
        old.y,
        torch.where(mask[:, None], new.logits, old.logits),
        torch.where(mask, new.loss, old.loss),
        None if new.grad is None or old.grad is None else torch.lerp(old.grad, new.grad, whole),
    )


def margin_for(keep: Keep, margin: float | None) -> float:
    """The label margin that goes with `keep` where none is named: 0 for "last", 1e-4 for "best".

    >>> margin_for("last", None), margin_for("best", None), margin_for("last", 0.01)
    (0.0, 0.0001, 0.01)
    """
    return {"best": MARGIN}.get(keep, 0.0) if margin is None else margin

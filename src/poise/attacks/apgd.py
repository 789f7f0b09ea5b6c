"""APGD: projected gradient with momentum and a step that halves by itself (Croce & Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.common import attack_call, check_finite, clean_logits
from poise.attacks.descent import choose_points, point_at, pulse
from poise.attacks.worst_case import Restarts
from poise.checks import check_count, settle
from poise.draws import Draw
from poise.modes import differentiable
from poise.objectives import NegativeCrossEntropy, Objective, Wants, lead
from poise.shapes import Images, Labels, Logits, Model, PerSample, Point, per_image
from poise.threat import Ball, ball, ball_round, check_step

ALPHA = 0.75  # the new step's share, against the momentum's (eq. 1 of the source)
RHO = 0.75  # the share of steps that has to improve (condition 1)


@dataclass(frozen=True)
class Lead:
    """z_y − max_{j≠y} z_j, below 0 exactly where another class leads.

    >>> Lead()(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [1.0]
    """

    wants: ClassVar[Wants] = "lower"

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        return lead(logits, y)


@dataclass(frozen=True)
class LogitsRatio:
    """(z_y − max_{j≠y} z_j) / (z_1st − z_3rd), the lead in a unit that the logits' scale does not change.

    The negative of the source's DLR loss (its eq. 5), because objectives are minimised. Two classes
    have no third logit, and the ratio to the second would be ±1: there it is the lead itself.

    >>> LogitsRatio()(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0])).tolist()  # (4 − 3) / (4 − 2)
    [0.5]
    """

    wants: ClassVar[Wants] = "lower"

    def __call__(self, logits: Logits, y: Labels) -> PerSample:
        ahead = lead(logits, y)
        if logits.shape[1] < 3:
            return ahead
        first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
        spread = first - third
        return ahead / spread.where(spread > 0, 1)  # 0 where three classes tie


@dataclass(frozen=True, kw_only=True)
class Apgd:
    """Minimise an objective by APGD; of all points seen, return the one of lowest goal.

    An image's step is halved at a checkpoint where fewer than 3/4 of the steps since the last one
    improved, or where neither its step nor its best value has changed since; it then goes on from
    its best point. `steps` + 1 forwards and `steps` backwards; a random start costs one forward more.

    Args:
        objective: (logits (n, k), labels (n,)) -> (n,), minimised.
        ball: where the images may go.
        step: the first step's size, in pixel units of [0, 1].
        steps: gradients an image.
        goal: what the returned point is chosen by, by default the objective.
        random_start: begin at a random point of the ball, not at x.
    """

    aim: ClassVar[Aim] = Aim(labels="true", keeps_label=False, wants="mislabel")
    uses_labels = property(takes_true_labels)

    objective: Objective
    ball: Ball
    step: float
    steps: int
    goal: Objective | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_step(self.step, self.ball)
        check_count("steps", self.steps)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        """The attacked images; arguments and refusals are those of `Descent`, y the true labels."""
        draw, start = Draw.of(x, generator), x
        with differentiable(model):
            if self.random_start:
                clean = clean_logits(model, x, y)
                y, start = clean.argmax(dim=1) if y is None else y, self.ball.sample(x, draw)
            at = point_at(model, self.objective, start, y, grad=True, check=True)
            return replace(self, ball=ball_round(self.ball, x))._walk(model, x, at, draw)

    def _walk(self, model: Model, center: Images, at: Point, draw: Draw) -> Images:
        goal, marks = self.goal or self.objective, checkpoints(self.steps)
        best, before, size = at, None, torch.full_like(at.loss, self.step)
        found, lowest = at.x, goal(at.logits, at.y)
        mark, level, improved, halved = 0, at.loss, torch.zeros_like(size), torch.zeros_like(size).bool()
        beat = pulse(at)
        for t in range(1, self.steps + 1):
            moved = self._moved(center, at, before, size, draw.at(t))
            new = point_at(model, self.objective, moved, at.y, grad=t < self.steps)
            improved = improved + (new.loss < at.loss)
            before, at = at.x, new
            beat, reached = beat + pulse(new), goal(new.logits, new.y)
            better = reached < lowest
            found, lowest = (
                torch.where(per_image(better), new.x, found),
                torch.where(better, reached, lowest),
            )
            if t == self.steps:
                break
            best = choose_points(new.loss < best.loss, new, best)
            # The source's Algorithm 1 replaces the point after this one, whose forward is then wasted.
            if t in marks:
                halved = (improved < RHO * (t - mark)) | (~halved & (best.loss == level))  # conditions 1, 2
                size, at = torch.where(halved, size / 2, size), choose_points(halved, best, at)
                mark, level, improved = t, best.loss, torch.zeros_like(size)
        check_finite(torch.isfinite(beat))
        return found

    def _moved(
        self, center: Images, at: Point, before: Images | None, size: PerSample, draw: Draw
    ) -> Images:
        """The next point: ALPHA of a step down the gradient, the rest from the last move, if any."""
        assert at.grad is not None
        way = per_image(size) * self.ball.steepest(at.grad)
        aim = self.ball.project(at.x - way.to(center.dtype), center, draw)
        if before is None:
            return aim
        return self.ball.project(at.x + ALPHA * (aim - at.x) + (1 - ALPHA) * (at.x - before), center, draw)


def checkpoints(steps: int) -> frozenset[int]:
    """The numbers of steps after which APGD looks back: the ⌈p_j · steps⌉ below `steps`.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), here in whole hundredths.

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    >>> sorted(checkpoints(5))
    [2, 3, 4]
    """
    last, p, marks = 0, 22, set()
    while p < 100:
        marks.add(-(-p * steps // 100))
        last, p = p, p + max(p - last - 3, 6)
    return frozenset(mark for mark in marks if mark < steps)


def apgd_ce(
    *, eps: float = 0.03, steps: int = 20, norm: str = "linf", random_start: bool = False, restarts: int = 1
) -> Apgd | Restarts:
    """APGD up the cross-entropy of the label (Croce & Hein 2020); the source takes 100 steps.

    It returns the point where another class leads by the most. In L1 the ball's own steps are taken,
    not those of Croce & Hein 2021.

    >>> apgd_ce(eps=0.1, norm="l2").step
    0.2
    """
    return _apgd(NegativeCrossEntropy(), Lead(), eps, steps, norm, random_start, restarts)


def apgd_dlr(
    *, eps: float = 0.03, steps: int = 20, norm: str = "linf", random_start: bool = False, restarts: int = 1
) -> Apgd | Restarts:
    """APGD up the difference of logits ratio (Croce & Hein 2020); with two classes, of logits alone.

    Unlike the cross-entropy's, its gradient does not vanish where the model is sure.

    >>> apgd_dlr().objective
    LogitsRatio()
    """
    return _apgd(LogitsRatio(), None, eps, steps, norm, random_start, restarts)


def _apgd(
    objective: Objective,
    goal: Objective | None,
    eps: float,
    steps: int,
    norm: str,
    random_start: bool,
    restarts: int,
) -> Apgd | Restarts:
    around = ball(norm, eps)
    attack = Apgd(
        objective=objective,
        goal=goal,
        ball=around,
        step=2 * float(eps),
        steps=steps,
        random_start=random_start,
    )
    return attack if restarts == 1 else Restarts(attack, restarts)

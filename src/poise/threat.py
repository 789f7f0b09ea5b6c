"""Balls: how far an image may be moved. Every ball keeps pixels in [0, 1] as well.

A budget is never passed, not by a rounding either: the length of x_adv − x is at most eps, summed in the
images' dtype or in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from poise.checks import InputError, check_number, settle
from poise.draws import Draw
from poise.naming import lookup
from poise.shapes import Images, PerSample, per_image


class Ball(Protocol):
    """A set of images round a centre."""

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        """The point of the ball round `center` that stands for `x`."""
        ...

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        """The direction of size 1 along which a function with this gradient rises fastest.

        A ball whose steps are random takes their draw; the others need none.
        """
        ...

    def sample(self, center: Images, draw: Draw) -> Images:
        """A random point of the ball."""
        ...


@dataclass(frozen=True)
class Linf:
    """No pixel moves by more than eps, in units of [0, 1].

    >>> x = torch.full((1, 1, 1, 3), 0.5)
    >>> Linf(0.25).project(torch.tensor([[[[0.0, 0.6, 1.0]]]]), x).tolist()[0][0][0]
    [0.25, 0.6000000238418579, 0.75]
    """

    eps: float
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        settle(self)
        check_number("eps", self.eps, 0, 1, hint="eps is in pixel units of [0, 1], e.g. 8/255")

    def project(self, x: Images, center: Images, draw: Draw | None = None) -> Images:
        return self.held(center).project(x, center, draw)

    def held(self, center: Images) -> Within:
        """The ball round this centre alone, its bounds worked out once: for many projections."""
        within = Within.of(self, center)
        return replace(within, low=within.low.clamp_min(0), high=within.high.clamp_max(1))

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        return grad.sign()

    def sample(self, center: Images, draw: Draw) -> Images:
        return self.project(center + self.eps * (2 * draw.uniform(center) - 1), center)


@dataclass(frozen=True, eq=False)
class Within:
    """An L∞ ball round one batch of images: no pixel is below `low` or above `high`."""

    ball: Linf
    reach: float
    low: Images
    high: Images

    @classmethod
    def of(cls, ball: Linf, center: Images) -> Within:
        """The bounds that the ball alone sets, without those of [0, 1]."""
        reach = largest(ball.eps, center.dtype)
        low, high = (add(center, torch.full_like(center, side * reach)) for side in (-1, 1))
        return cls(ball, reach, low, high)

    def project(self, x: Images, center: Images, draw: Draw | None = None) -> Images:
        delta = (x - center).clamp_(-self.reach, self.reach)  # in place, where memory costs more than sums
        return delta.add_(center).clamp_(self.low, self.high).to(center.dtype)

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        return self.ball.steepest(grad)

    def sample(self, center: Images, draw: Draw) -> Images:
        return self.ball.sample(center, draw)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the whole image's change is at most eps.

    >>> moved = L2(1.0).project(torch.tensor([[[[3.0, 4.0]]]]), torch.zeros(1, 1, 1, 2))
    >>> [round(v, 6) for v in moved.flatten().tolist()]
    [0.6, 0.8]
    """

    eps: float
    norm: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        settle(self)
        check_number("eps", self.eps, 0)

    def project(self, x: Images, center: Images, draw: Draw | None = None) -> Images:
        wide = torch.promote_types(torch.promote_types(x.dtype, center.dtype), torch.float32)
        delta = x.to(wide) - center.to(wide)
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)
        longest = reach("l2", self.eps, center)
        shrink = torch.where(length > longest, longest / length, 1.0).to(wide)
        return add(center, delta * per_image(shrink)).clamp(0, 1)

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        largest = grad.flatten(1).abs().amax(dim=1)
        grad = grad / per_image(torch.where(largest > 0, largest, torch.ones_like(largest)))
        length = torch.linalg.vector_norm(grad.flatten(1), dim=1)  # numbers of size 1: no underflow
        return grad / per_image(torch.where(length > 0, length, torch.ones_like(length)))

    def sample(self, center: Images, draw: Draw) -> Images:
        way = self.steepest(draw.normal(center))
        dimensions = center[0].numel() if len(center) else 1
        radius = self.eps * draw.uniform_each(center.flatten(1)[:, 0]) ** (1 / dimensions)
        return self.project(center + per_image(radius) * way, center)


@dataclass(frozen=True)
class L1:
    """The sum of all pixels' changes is at most eps.

    >>> moved = L1(1.0).project(torch.tensor([[[[0.9, 0.6]]]]), torch.zeros(1, 1, 1, 2))
    >>> [round(v, 6) for v in moved.flatten().tolist()]
    [0.65, 0.35]
    """

    eps: float
    norm: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        settle(self)
        check_number("eps", self.eps, 0)

    def project(self, x: Images, center: Images, draw: Draw | None = None) -> Images:
        """The nearest point in both the ball and the box (the solver is exact up to rounding).

        A pixel's change d becomes sign(d)·min(max(|d| − λ, 0), its room up to the box), with the one
        λ that spends eps. The sum falls with λ, linearly between the 2·c·h·w places where a pixel
        begins or ends to move.
        """
        longest = reach("l1", self.eps, center)
        delta = (x - center).flatten(1).double()
        away, room = delta.abs(), torch.where(delta > 0, 1 - center.flatten(1), center.flatten(1))
        start, end = away, (away - room).clamp_min(0)
        places, order = torch.cat([start, end], dim=1).sort(dim=1, descending=True)
        moving = torch.where(order < away.shape[1], 1.0, -1.0).double().cumsum(dim=1)
        spent = (moving[:, :-1] * (places[:, :-1] - places[:, 1:])).cumsum(dim=1)  # at places[1:]
        last = (spent < longest).sum(dim=1, keepdim=True).clamp(max=spent.shape[1] - 1)
        before = torch.where(last > 0, spent.gather(1, (last - 1).clamp_min(0)), 0.0)
        rest = (longest - before) / moving.gather(1, last).clamp_min(1)
        level = (places.gather(1, last) - rest).clamp_min(0)
        level = torch.where(torch.minimum(away, room).sum(dim=1, keepdim=True) <= longest, 0.0, level)
        change = delta.sign() * torch.minimum((away - level).clamp_min(0), room.double())
        total = change.abs().sum(dim=1, keepdim=True)
        change = change * torch.where(total > longest, longest / total, 1.0)  # what rounding has added
        return add(center, change.reshape(x.shape)).clamp(0, 1)

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        """Equal steps on the twentieth of the pixels with the largest gradient (Tramèr & Boneh 2019)."""
        flat = grad.flatten(1)
        many = max(1, flat.shape[1] // 20)
        top = flat.abs().topk(many, dim=1).indices
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / many).reshape(grad.shape)

    def sample(self, center: Images, draw: Draw) -> Images:
        sides = 2 * draw.uniform(center).flatten(1) - 1
        lengths = -sides.abs().clamp_min(1e-30).log()
        way = sides.sign() * lengths / lengths.sum(dim=1, keepdim=True)
        radius = self.eps * draw.uniform_each(sides[:, 0]) ** (1 / max(1, sides.shape[1]))
        return self.project(center + (radius[:, None] * way).reshape(center.shape), center)


@dataclass(frozen=True)
class Masked:
    """A random face of the ball: only a fresh share `keep_fraction` of the pixels may differ (eqs. 2-3).

    With `rescale` the surviving changes are divided by `keep_fraction` after the projection, as
    `torch.nn.functional.dropout` does: then a pixel may move by eps / keep_fraction.
    """

    ball: Ball
    keep_fraction: float
    rescale: bool = False

    def __post_init__(self) -> None:
        settle(self)
        _check_share(self.keep_fraction)

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        mask = draw.uniform(center) < self.keep_fraction  # eq. 2
        held = self.ball.project(x, center, draw)
        if not self.rescale:
            return torch.where(mask, held, center)  # eq. 3
        return (center + torch.where(mask, (held - center) / self.keep_fraction, 0.0)).clamp(0, 1)

    def held(self, center: Images) -> Masked:
        """The same round this centre alone."""
        return replace(self, ball=ball_round(self.ball, center))

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        return self.ball.steepest(grad, draw)

    def sample(self, center: Images, draw: Draw) -> Images:
        return self.ball.sample(center, draw)


@dataclass(frozen=True)
class Sparse:
    """The same ball, in which a step moves a random share of the pixels alone, fresh ones each time.

    What earlier steps changed stays: after t steps about 1 − (1 − keep_fraction)^t of them were moved.
    """

    ball: Ball
    keep_fraction: float

    def __post_init__(self) -> None:
        settle(self)
        _check_share(self.keep_fraction)

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        return self.ball.project(x, center, draw)

    def held(self, center: Images) -> Sparse:
        """The same round this centre alone."""
        return replace(self, ball=ball_round(self.ball, center))

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        """The ball's direction at the pixels drawn (eq. 2), 0 at the others; without a draw, seed 0's."""
        mask = (draw or Draw.of(grad)).uniform(grad) < self.keep_fraction
        return torch.where(mask, self.ball.steepest(grad, draw), 0.0)

    def sample(self, center: Images, draw: Draw) -> Images:
        return self.ball.sample(center, draw)


def _check_share(keep_fraction: float) -> None:
    hint = "it is the share of pixels kept (p of eq. 2), not the share dropped"
    check_number("keep_fraction", keep_fraction, 1e-6, 1, hint=hint)


def ball_round(ball: Ball, center: Images) -> Ball:
    """The ball round this centre alone; what depends on the centre is worked out once, if it can be."""
    once: Callable[[Images], Ball] | None = getattr(ball, "held", None)
    return ball if once is None else once(center)


def add(center: Images, delta: Tensor) -> Images:
    """Center + delta in the centre's dtype, rounded towards the centre: no pixel goes farther than delta.

    Args:
        center: images.
        delta: in the centre's dtype or a wider one.

    >>> bool(add(torch.tensor(0.03), torch.tensor(0.1)).double() - torch.tensor(0.03).double() <= 0.1)
    True
    """
    wide = center.to(delta.dtype)
    moved = (wide + delta).to(center.dtype)
    at, side = moved.to(delta.dtype), delta.sign()
    # At least one of the two differences is exact, and no rounding makes the other one change sides.
    over = (((at - wide) - delta) * side > 0) | (((at - delta) - wide) * side > 0)
    return torch.where(over, torch.nextafter(moved, center), moved)


def between(start: Images, end: Images, share: PerSample) -> Images:
    """The points that far on the way, (n,) in [0, 1]: in every ball round `start` that holds `end`."""
    way = start + per_image(share).to(end.dtype) * (end - start)
    return way.clamp(torch.minimum(start, end), torch.maximum(start, end))


def largest(eps: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is not above eps.

    >>> largest(0.1, torch.float32) < 0.1, largest(0.5, torch.bfloat16), largest(0.1, torch.float64)
    (True, 0.5, 0.1)
    """
    info = torch.finfo(dtype)
    unit = max(math.ldexp(info.eps, math.frexp(eps)[1] - 1), info.tiny * info.eps)
    return math.floor(eps / unit) * unit


SUMS = {"l2": 1 / 128, "l1": 1 / 8, "linf": 0.0}  # the most units that torch's norm is off, a pixel


def reach(norm: str, eps: float, center: Images) -> float:
    """The longest change, by a float64 sum, that no sum in the images' dtype makes longer than eps."""
    unit = torch.finfo(center.dtype).eps
    sums = torch.finfo(torch.promote_types(center.dtype, torch.float32)).eps
    many = center[0].numel() if len(center) else 0
    slack = 0 if norm == "linf" else 4 * unit + SUMS[norm] * many * sums
    return largest(eps, center.dtype) * max(0.0, 1 - slack)


BALLS: Mapping[str, Callable[[float], Ball]] = {"linf": Linf, "l2": L2, "l1": L1}


def ball(norm: str, eps: float) -> Ball:
    """The ball of that norm and radius.

    >>> ball("l2", 0.5)
    L2(eps=0.5)
    """
    return lookup(BALLS, norm, "norm")(eps)


def check_step(step: float, ball: Ball) -> None:
    """Refuse a first step that is no number above 0; a ball of radius 0 has no other."""
    hint = "it is in pixel units of [0, 1], e.g. 5/255"
    check_number("step", step, 0, hint=hint)
    while (inner := getattr(ball, "ball", None)) is not None:
        ball = inner
    if step == 0 and getattr(ball, "eps", 1) > 0:
        raise InputError(f"step must be a number above 0, got {step!r}, which leaves every image: {hint}")


def first_step(norm: str, eps: float, step: float | None, steps: int) -> float:
    """The first step's size: as given, else the paper's 5/255 in L∞, and 2.5·eps / steps elsewhere.

    >>> first_step("linf", 0.03, None, 20) == 5 / 255, first_step("l2", 2.0, None, 20)
    (True, 0.25)
    """
    if step is not None:
        return step
    return 5 / 255 if norm.lower() == "linf" else 2.5 * eps / max(1, steps)

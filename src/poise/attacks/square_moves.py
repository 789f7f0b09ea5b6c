"""Square's moves: where a random search looks next (Andriushchenko et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from poise.checks import InputError
from poise.draws import Draw
from poise.naming import lookup
from poise.shapes import Images, PerSample
from poise.threat import L2, Linf


class Moves(Protocol):
    """Where a random search looks next."""

    @property
    def ball(self) -> Linf | L2:
        """Where the images may go."""
        ...

    def start(self, center: Images, draw: Draw) -> Images:
        """A point of the ball with the whole image changed."""
        ...

    def propose(self, at: Images, center: Images, side: float, draw: Draw) -> Images:
        """A neighbour of `at` in the ball round `center`, other in one square of about that side."""
        ...


@dataclass(frozen=True)
class Squares:
    """The L∞ moves: a square of one colour, every channel at +eps or −eps; at the start, stripes."""

    ball: Linf

    def start(self, center: Images, draw: Draw) -> Images:
        signs = _signs(_numbers(center, draw, center.shape[1] * center.shape[3]))
        stripes = signs.reshape(len(center), center.shape[1], 1, center.shape[3])
        held = self.ball.held(center)
        return torch.where(stripes > 0, held.high, held.low)

    def propose(self, at: Images, center: Images, side: float, draw: Draw) -> Images:
        u = _numbers(center, draw, 2 + center.shape[1])
        inside, _, _ = _window(center, max(round(side), 1), u[:, 0], u[:, 1])
        up, held = (u[:, 2:] >= 0.5)[:, :, None, None], self.ball.held(center)
        new, other = (torch.where(inside, torch.where(side, held.high, held.low), at) for side in (up, ~up))
        # What it already has would waste a query.
        return torch.where((new == at).flatten(1).all(dim=1)[:, None, None, None], other, new)


@dataclass(frozen=True)
class Bumps:
    """The L2 moves: one window gives its share of eps² to another, which adds a bump; at first, a grid."""

    ball: L2

    def start(self, center: Images, draw: Draw) -> Images:
        n, c, h, w = center.shape
        s = max(min(h, w) // 5, 1)
        rows, columns = h // s, w // s
        u = _numbers(center, draw, (c + 1) * rows * columns).reshape(n, c + 1, rows, columns)
        u = u.repeat_interleave(s, dim=2).repeat_interleave(s, dim=3)
        bump = _bump(s, center).repeat(1, rows, columns)[:, None]
        turned = _bump(s, center).mT.repeat(1, rows, columns)[:, None]
        tiles = torch.where(u[:, c:] > 0.5, bump, turned) * _signs(u[:, :c])
        top, left = (h - rows * s) // 2, (w - columns * s) // 2
        around = (left, w - columns * s - left, top, h - rows * s - top)
        return self._full(F.pad(tiles.to(_wide(center).dtype), around), center)

    def propose(self, at: Images, center: Images, side: float, draw: Draw) -> Images:
        c = center.shape[1]
        u = _numbers(center, draw, 5 + c)
        s = max(round(side), 3)
        s += 1 - s % 2
        inside, row, column = _window(center, s, u[:, 0], u[:, 1])
        giver, _, _ = _window(center, s, u[:, 2], u[:, 3])
        s = min(s, *center.shape[2:])
        bump = _bump(s, _wide(center))
        bump = torch.where(u[:, 4, None, None] > 0.5, bump, bump.mT)
        bump = bump.gather(1, row.clamp(0, s - 1)[:, :, None].expand(-1, -1, s))
        bump = bump.gather(2, column.clamp(0, s - 1)[:, None, :].expand(-1, bump.shape[1], -1))[:, None]
        delta = _wide(at) - _wide(center)
        left = (self.ball.eps**2 - (delta**2).sum(dim=(1, 2, 3), keepdim=True)).clamp_min(0)
        share = (left / c + (delta * (inside | giver)).square().sum(dim=(2, 3), keepdim=True)).sqrt()
        signs = _signs(u[:, 5:]).to(delta.dtype)[:, :, None, None]
        new = (signs * bump + delta / _length(delta * inside)) * inside
        new = share * new / _length(new)
        return self._full(torch.where(inside, new, torch.where(giver, 0.0, delta)), center)

    def _full(self, delta: Images, center: Images) -> Images:
        """The image at the full distance eps in that direction; the box may shorten it."""
        length = (delta**2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
        wide = _wide(center)
        return self.ball.project(wide + self.ball.eps * delta / length.clamp_min(1e-12), center)


MOVES: Mapping[str, Callable[[float], Moves]] = {
    "linf": lambda eps: Squares(Linf(eps)),
    "l2": lambda eps: Bumps(L2(eps)),
}


def moves(norm: str, eps: float) -> Moves:
    """The moves in that norm's ball; random search is offered in L∞ and L2.

    >>> moves("linf", 0.1)
    Squares(ball=Linf(eps=0.1))
    """
    if norm == "l1":
        raise InputError(
            "norm 'l1' has no random search here (known: l2, linf): take one of these or a gradient attack "
            "such as auto or apgd_ce"
        )
    return lookup(MOVES, norm, "norm")(eps)


def _numbers(x: Images, draw: Draw, count: int) -> Float[Tensor, "n count"]:
    """That many uniform numbers an image, the same in every dtype."""
    return draw.uniform(torch.empty(len(x), count, device=x.device))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: in half precision a length may vanish."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0)


def _window(x: Images, side: int, u: PerSample, v: PerSample) -> tuple[Tensor, Tensor, Tensor]:
    """A square an image: its mask (n, 1, h, w); rows (n, h) and columns (n, w) from its corner.

    Every place is as likely; the source's squares never reach the last row and the last column.
    """
    side = min(side, *x.shape[2:])
    row, column = (
        torch.arange(length, device=x.device) - (place[:, None] * (length - side + 1)).floor().long()
        for length, place in ((x.shape[2], u), (x.shape[3], v))
    )
    across, down = ((i >= 0) & (i < side) for i in (column, row))
    return down[:, None, :, None] & across[:, None, None, :], row, column


def _length(window: Tensor) -> Tensor:
    """Every channel's Euclidean length, (n, c, 1, 1), never 0."""
    return window.square().sum(dim=(2, 3), keepdim=True).sqrt() + 1e-12


def _bump(s: int, like: Tensor) -> Float[Tensor, "1 s s"]:
    """Two heaps side by side, the one up and the other down, of length 1 (the source's η)."""

    def heap(rows: int) -> Tensor:
        i, j = torch.arange(rows)[:, None] - rows // 2, torch.arange(s) - s // 2
        steps = torch.arange(1, max(rows, s) // 2 + 2, dtype=torch.float64) ** -2
        tails: Tensor = steps.flip(0).cumsum(0).flip(0)[torch.maximum(i.abs(), j.abs())]
        return tails

    halves = [
        sign * h / h.norm().clamp_min(1e-12) for sign, h in ((1, heap(s // 2)), (-1, heap(s - s // 2)))
    ]
    bump = torch.cat(halves)
    unit: Tensor = (bump / bump.norm())[None].to(like)
    return unit

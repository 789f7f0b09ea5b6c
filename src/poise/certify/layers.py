"""Layers as bounds need them: how a box goes forward, and how linear functions go back.

A linear function of a layer's output is a row of weights. A convolution's neuron sees few pixels, so rows
carry the window in which they are not zero and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

TIE = 1e-9  # which of two relaxations is taken must not hang on rounding, which hangs on the batch
Shape: TypeAlias = tuple[int, ...]  # of one image, without the batch
Pair: TypeAlias = tuple[int, int]


class Box(NamedTuple):
    """Values (n, ...) between which every entry lies."""

    lower: Tensor
    upper: Tensor


class Slopes(NamedTuple):
    """A layer between two linear functions: low · x <= layer(x) <= up · x + shift."""

    low: Tensor
    up: Tensor
    shift: Tensor


class Rows(NamedTuple):
    """Weights (rows, ...) of linear functions; of images a window with its corner at (top, left)."""

    weights: Tensor
    top: int = 0
    left: int = 0

    def cut(self, values: Tensor) -> Tensor:
        """The part of (n, ..., height, width) values that lies in the window."""
        if self.weights.ndim != 4:
            return values
        height, width = self.weights.shape[-2:]
        return values[..., self.top : self.top + height, self.left : self.left + width]

    def spread(self, weights: Tensor, stride: Pair, padding: Pair, source: Shape) -> Rows:
        """What these weights became on the input of a convolution or pool, its padding left out."""
        top, left = self.top * stride[0] - padding[0], self.left * stride[1] - padding[1]
        inside = weights[..., max(0, -top) : source[1] - top, max(0, -left) : source[2] - left]
        return Rows(inside, max(0, top), max(0, left))

    def whole(self, shape: Shape) -> Tensor:
        """The weights on the whole image."""
        full = self.weights.new_zeros(len(self.weights), *shape)
        self.cut(full).copy_(self.weights)
        return full

    def plus(self, other: Rows | None, shape: Shape) -> Rows:
        """The sum of functions of one layer."""
        return self if other is None else Rows(self.whole(shape) + other.whole(shape))


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine:
    """A layer A x + b.

    Args:
        apply: the layer.
        widen: |A|.
        local: each pixel by itself, so that it does to a window what it does to the image.
        free: each output hears one input of its own.
        size: how many weights there are for each place of the output.
    """

    apply: Callable[[Tensor], Tensor]
    widen: Callable[[Tensor], Tensor]
    local: bool = False
    free: bool = False
    size: int = 0

    def box(self, *boxes: Box) -> Box:
        """Where the outputs lie when the inputs lie in a box."""
        ((lower, upper),) = boxes
        center, radius = self.apply((lower + upper) / 2), self.widen((upper - lower) / 2)
        return Box(center - radius, center + radius)

    def back(self, rows: Rows, source: Shape, target: Shape) -> Rows:
        """The functions w of the output as functions w A of the input."""
        shape = (*source[:-2], *rows.weights.shape[-2:]) if self.local and len(source) == 3 else source
        trained = torch.is_grad_enabled()  # the layer's own weights, by who calls
        with torch.enable_grad():
            x = rows.weights.new_zeros(len(rows.weights), *shape, requires_grad=True)
            weights = rows.weights if self.local else rows.whole(target)
            (found,) = torch.autograd.grad(self.apply(x), x, weights, create_graph=trained)
        return Rows(found, *rows[1:]) if self.local else Rows(found)

    def reach(self, size: Pair, source: Shape) -> Pair:
        """Height and width of the inputs that a window of the outputs hears."""
        return size if self.local else (source[1], source[2]) if len(source) == 3 else (1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Affine):
    """A convolution; `options` are F.conv_transpose2d's after its weight, `padding` is above and before."""

    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def back(self, rows: Rows, source: Shape, target: Shape) -> Rows:
        """The functions of the output as functions of the input, a somewhat larger window."""
        options: Any = (None, self.stride, 0, 0, self.groups, self.dilation)
        weights = F.conv_transpose2d(rows.weights, self.weight, *options)
        return rows.spread(weights, self.stride, self.padding, source)

    def reach(self, size: Pair, source: Shape) -> Pair:
        """Height and width of the inputs that a window of the outputs hears."""
        (high, wide), (down, right) = self.weight.shape[2:], self.dilation
        return _reach(size, self.stride, (down * (high - 1) + 1, right * (wide - 1) + 1), source)


class Add:
    """The sum of two layers."""

    size, free = 0, False

    def box(self, *boxes: Box) -> Box:
        """Where the sums lie."""
        one, other = boxes
        return Box(one.lower + other.lower, one.upper + other.upper)

    def reach(self, size: Pair, source: Shape) -> Pair:
        """Height and width of the inputs that a window of the outputs hears."""
        return size


class Relu:
    """max(x, 0)."""

    size, free = 0, True

    def box(self, *boxes: Box) -> Box:
        """Where the outputs lie when the inputs lie in a box."""
        return Box(*(values.clamp_min(0) for values in boxes[0]))

    def unsure(self, box: Box) -> Tensor:
        """The inputs whose bounds are worth more work."""
        return (box.lower < 0) & (box.upper > 0)

    def slopes(self, box: Box) -> Slopes:
        """Above, the chord; below, x or 0, whichever leaves the smaller area."""
        lower, upper = box
        unsure, on = self.unsure(box), (lower >= 0).to(lower.dtype)
        up = torch.where(unsure, upper / (upper - lower), on)
        low = torch.where(unsure, (upper > -lower * (1 + TIE)).to(lower.dtype), on)
        return Slopes(low, up, torch.where(unsure, -up * lower, 0.0))

    def back(self, rows: Rows, source: Shape, slopes: Slopes, of: Tensor) -> tuple[Rows, Tensor]:
        """Lower bounds of the functions as functions of the input, and what is added to them."""
        low, up, shift = (rows.cut(values)[of] for values in slopes)
        down = rows.weights.clamp_max(0)
        weights = rows.weights.clamp_min(0) * low + down * up
        return Rows(weights, *rows[1:]), (down * shift).flatten(1).sum(dim=1)

    def reach(self, size: Pair, source: Shape) -> Pair:
        """Height and width of the inputs that a window of the outputs hears."""
        return size


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The largest of each window."""

    side: Pair
    stride: Pair
    padding: Pair

    size, free = 0, False

    def box(self, *boxes: Box) -> Box:
        """Where the outputs lie when the inputs lie in a box."""
        return Box(*(F.max_pool2d(values, self.side, self.stride, self.padding) for values in boxes[0]))

    def unsure(self, box: Box) -> Tensor:
        """The inputs that may be the largest of a window where another one may be, too."""
        lower, upper = (self._windows(values) for values in box)
        may = upper > lower.amax(dim=2, keepdim=True)
        several = (may & (may.sum(dim=2, keepdim=True) > 1)).to(upper.dtype)
        (above, before), (high, wide) = self.padding, box.lower.shape[-2:]
        found = self._fold(several, (high + 2 * above, wide + 2 * before)) > 0
        return found[..., above : above + high, before : before + wide]

    def slopes(self, box: Box) -> Slopes:
        """Below, the input with the largest lower bound t; above, chords or the largest upper bound.

        max x <= t + Σ max(x_i − t, 0) <= t + Σ chords; the lesser of the two at the centre is taken.
        """
        lower, upper = (self._windows(values) for values in box)
        best, top = lower.amax(dim=2, keepdim=True), upper.amax(dim=2, keepdim=True)
        leads, may = lower >= best - TIE * (1 + best.abs()), upper > best
        first = leads & (leads.cumsum(dim=2) == 1)
        up = torch.where(may, (upper - best) / (upper - lower), 0.0)
        start = torch.where(may, lower, 0.0)
        center = best + (up * (torch.where(may, upper, 0.0) - start) / 2).sum(dim=2, keepdim=True)
        flat = (center > top - TIE * (1 + top.abs())) & (may.sum(dim=2, keepdim=True) > 1)
        shift = torch.where(flat, top, best - (up * start).sum(dim=2, keepdim=True))
        return Slopes(first.to(up.dtype), torch.where(flat, 0.0, up), shift[:, :, 0])

    def back(self, rows: Rows, source: Shape, slopes: Slopes, of: Tensor) -> tuple[Rows, Tensor]:
        """Lower bounds of the functions as functions of the input, and what is added to them."""
        low, up, shift = (rows.cut(values)[of] for values in slopes)
        down = rows.weights.clamp_max(0)
        columns = rows.weights.clamp_min(0)[:, :, None] * low + down[:, :, None] * up
        high, wide = columns.shape[-2:]
        weights = self._fold(columns, _reach((high, wide), self.stride, self.side))
        return rows.spread(weights, self.stride, self.padding, source), (down * shift).flatten(1).sum(dim=1)

    def reach(self, size: Pair, source: Shape) -> Pair:
        """Height and width of the inputs that a window of the outputs hears."""
        return _reach(size, self.stride, self.side, source)

    def _windows(self, values: Tensor) -> Tensor:
        """(n, c, window, height, width) values of every window, −∞ around the image."""
        (above, before), n = self.padding, len(values)
        padded = F.pad(values, (before, before, above, above), value=-math.inf)
        high, wide = ((padded.shape[2 + i] - self.side[i]) // self.stride[i] + 1 for i in (0, 1))
        return F.unfold(padded, self.side, stride=self.stride).reshape(n, values.shape[1], -1, high, wide)

    def _fold(self, columns: Tensor, size: Pair) -> Tensor:
        return F.fold(columns.flatten(3).flatten(1, 2), size, self.side, stride=self.stride)


def _reach(size: Pair, stride: Pair, side: Pair, source: Shape = ()) -> Pair:
    high, wide = ((size[i] - 1) * stride[i] + side[i] for i in (0, 1))
    return (min(high, source[1]), min(wide, source[2])) if source else (high, wide)


Layer: TypeAlias = Affine | Add | Relu | MaxPool

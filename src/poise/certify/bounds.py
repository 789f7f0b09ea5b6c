"""Bounds of linear functions over a ball: intervals (IBP) and linear bounds carried back (CROWN)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.certify.layers import Add, Affine, Box, MaxPool, Relu, Rows, Slopes
from poise.certify.network import Network
from poise.shapes import Images, PerSample

ENTRIES = 2**22  # float64 numbers held at once in one piece of work: 32 MiB, in a few copies


class Region(Protocol):
    """The images that an attack may reach."""

    box: Box
    independent: bool  # whether every point of the box is reached

    def least(self, rows: Rows, of: Tensor) -> PerSample:
        """The smallest value of linear functions of the images `of`."""
        ...


def least(box: Box, rows: Rows, of: Tensor) -> PerSample:
    """The smallest value of linear functions over the boxes `of`, exactly.

    >>> box = Box(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    >>> least(box, Rows(torch.tensor([[1.0, -3.0]])), torch.tensor([0])).item()
    -7.0
    """
    low, high = (rows.cut(values)[of] for values in box)
    return torch.where(rows.weights > 0, rows.weights * low, rows.weights * high).flatten(1).sum(dim=1)


class Linf:
    """Pixels that move by at most eps and stay in [0, 1], each for itself."""

    independent = True

    def __init__(self, x: Images, eps: float) -> None:
        self.box = Box((x - eps).clamp_min(0), (x + eps).clamp_max(1))

    def least(self, rows: Rows, of: Tensor) -> PerSample:
        return least(self.box, rows, of)


class L2:
    """Images whose change has at most the length eps, and that stay in [0, 1]."""

    independent = False

    def __init__(self, x: Images, eps: float) -> None:
        self.x, self.eps = x, eps
        self.box = Linf(x, eps).box

    def least(self, rows: Rows, of: Tensor) -> PerSample:
        """By the dual: Σ_i min_{d_i} (a_i d_i + μ d_i²) − μ is a lower bound for every μ, lengths in eps.

        μ comes down from its value without the box, to where the pixels that are not at its edge use up
        what those that are leave of the length.
        """
        a = rows.weights.flatten(1)
        x, low, high = (rows.cut(v)[of].flatten(1) for v in (self.x, *self.box))
        still = (a * x).sum(dim=1)
        if self.eps == 0:
            return still
        low, high = (low - x) / self.eps, (high - x) / self.eps
        mu = torch.linalg.vector_norm(a, dim=1, keepdim=True) / 2
        best = torch.full_like(still, -torch.inf)
        for _ in range(50):
            wanted = -a / (2 * mu).clamp_min(1e-300)
            d = torch.minimum(torch.maximum(wanted, low), high)
            before, best = best, torch.maximum(best, (a * d + mu * d**2).sum(dim=1) - mu[:, 0])
            if bool((best - before <= 1e-14 * best.abs()).all()):
                break
            edge = d != wanted
            left = 1 - torch.where(edge, d**2, 0.0).sum(dim=1, keepdim=True)
            free = torch.where(edge, 0.0, a**2).sum(dim=1, keepdim=True)
            mu = torch.where(left > 0, (free / (4 * left.clamp_min(1e-300))).sqrt(), mu)
        return still + self.eps * best


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of every node over a region of some images."""

    network: Network
    region: Region
    boxes: list[Box]
    slopes: dict[int, Slopes] = field(default_factory=dict)  # of nodes whose input's box is final
    offsets: dict[int, Tensor] = field(default_factory=dict)  # what affine nodes make of zeros

    @classmethod
    def by_intervals(cls, network: Network, region: Region) -> Bounds:
        """IBP: every layer by itself."""
        return cls(network, region, network.boxes(region.box))

    @classmethod
    def by_crown(cls, network: Network, region: Region) -> Bounds:
        """Intervals, and of each neuron that they leave unsure linear bounds back to the images."""
        bounds = cls(network, region, [region.box])
        for index in range(1, len(network.nodes)):
            bounds.boxes.append(network.box(index, bounds.boxes))
            if (unsure := bounds.unsure(index)) is not None:
                bounds.sharpen(index, unsure)
        return bounds

    def unsure(self, index: int) -> Tensor | None:
        """Which neurons of a node are worth rows; None where intervals are exact, or nobody asks."""
        readers = [node.layer for node in self.network.nodes if index in node.sources]
        asking = [layer for layer in readers if isinstance(layer, Relu | MaxPool)]
        if not asking or (self.network.nodes[index].exact and (self.region.independent or index == 0)):
            return None
        return torch.stack([layer.unsure(self.boxes[index]) for layer in asking]).any(dim=0)

    def sharpen(self, index: int, unsure: Tensor) -> None:
        """Better bounds of the unsure neurons of a node, put in the place of its box."""
        lower, upper = self.boxes[index]
        few = int(unsure.sum()) * self.work(index, whole=True)[1] <= ENTRIES // 4
        for where, rows in _neurons(unsure, whole=few):
            of, weights = where[0], rows.weights.to(lower.dtype)
            both = Rows(torch.cat([weights, -weights]), rows.top, rows.left)
            found = self.least(index, both, torch.cat([of, of]))
            lower[where] = torch.maximum(lower[where], found[: len(of)])
            upper[where] = torch.minimum(upper[where], -found[len(of) :])

    def least(self, index: int, rows: Rows, of: Tensor, *, through: bool = True) -> PerSample:
        """Lower bounds of linear functions of a node's output, each for its image `of`.

        They go back `through` every layer, or else stop at the boxes of layers that are not linear.
        """
        pieces = max(1, ENTRIES // self.work(index, whole=rows.weights.shape[-2:] != (1, 1))[1])
        parts = zip(rows.weights.split(pieces), of.split(pieces), strict=True)
        return torch.cat([self._least(index, Rows(w, *rows[1:]), images, through) for w, images in parts])

    def _least(self, index: int, rows: Rows, of: Tensor, through: bool) -> PerSample:
        waiting, total = {index: rows}, rows.weights.new_zeros(len(of))
        for i in range(index, 0, -1):
            if (here := waiting.pop(i, None)) is None:
                continue
            layer, sources, shape, *_ = self.network.nodes[i]
            source = self.network.nodes[sources[0]].shape
            if isinstance(layer, Affine):
                if i not in self.offsets:
                    self.offsets[i] = layer.apply(rows.weights.new_zeros(1, *source))
                total = total + (here.weights * here.cut(self.offsets[i])).flatten(1).sum(dim=1)
                here = layer.back(here, source, shape)
            elif not isinstance(layer, Add):
                if not through:
                    total = total + least(self.boxes[i], here, of)
                    continue
                if i not in self.slopes:
                    self.slopes[i] = layer.slopes(self.boxes[sources[0]])
                here, shift = layer.back(here, source, self.slopes[i], of)
                total = total + shift
            for i_source in sources:
                waiting[i_source] = here.plus(waiting.get(i_source), source)
        return total + self.region.least(waiting[0], of) if 0 in waiting else total

    def of_logits(self, weights: Tensor, *, through: bool) -> Tensor:
        """The least values (n, m) of linear functions (n, m, classes) of the logits of n images."""
        n, many, _ = weights.shape
        of = torch.arange(n, device=weights.device).repeat_interleave(many)
        last = len(self.network.nodes) - 1
        return self.least(last, Rows(weights.flatten(0, 1)), of, through=through).reshape(n, many)

    def work(self, index: int, *, whole: bool = False) -> tuple[int, int]:
        """Multiply-adds of one row from a node to the images, and its most entries at once."""
        nodes, adds, most = self.network.nodes, 0, 1
        *_, high, wide = (1, 1, *nodes[index].shape)
        sizes = {index: (high, wide) if whole and len(nodes[index].shape) == 3 else (1, 1)}
        for i in range(index, -1, -1):
            if (size := sizes.pop(i, None)) is None:
                continue
            layer, sources, shape, *_ = nodes[i]
            places = size[0] * size[1] if len(shape) == 3 else 1
            entries = math.prod(shape[:-2]) * places if len(shape) == 3 else math.prod(shape)
            adds, most = adds + entries + places * layer.size, max(most, entries)
            for i_source in sources:
                seen, before = layer.reach(size, nodes[i_source].shape), sizes.get(i_source, (1, 1))
                sizes[i_source] = max(seen[0], before[0]), max(seen[1], before[1])
        return adds, most

    def cost(self) -> PerSample:
        """Multiply-adds for each image of what CROWN would do, at most."""
        last = len(self.network.nodes) - 1
        outputs = (2 * self.network.nodes[last].shape[0] + 1) * self.work(last)[0]
        total = self.boxes[0].lower.new_full((len(self.boxes[0].lower),), outputs)
        for index in range(1, last):
            if (unsure := self.unsure(index)) is not None:
                total += 2 * self.work(index)[0] * unsure.flatten(1).sum(dim=1)
        return total


def _neurons(chosen: Tensor, *, whole: bool) -> Iterator[tuple[tuple[Tensor, ...], Rows]]:
    """The chosen neurons (n, *shape) as rows of one 1: all together, or those at one place of an image."""
    if whole or chosen.ndim != 4:
        for where in chosen.nonzero().split(max(1, ENTRIES // chosen[0].numel())):
            weights = chosen.new_zeros(len(where), *chosen.shape[1:])
            weights[(torch.arange(len(where), device=where.device), *where.T[1:])] = True
            yield tuple(where.T), Rows(weights)
        return
    for top, left in chosen.any(dim=0).any(dim=0).nonzero().tolist():
        image, channel = chosen[:, :, top, left].nonzero().T
        weights = F.one_hot(channel, chosen.shape[1])[:, :, None, None]
        place = torch.full_like(image, top), torch.full_like(image, left)
        yield (image, channel, *place), Rows(weights, top, left)

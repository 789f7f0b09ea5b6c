"""Figures of pages: shapes in the page's own colours, and images as they are.

Every figure carries its numbers, as a table and as the text that is read aloud in its place. Shapes are
plain values: the page's template writes and escapes them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from poise.metrics.intervals import Array, Number, percent, share, tell_count
from poise.report.tables import Table

WIDTH, HEIGHT = 360, 232  # a phone's width, so that letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 46, 22, 12, 44
FOOT = HEIGHT - BOTTOM
BINS, COARSE = 20, 10  # of histograms, and of reliability, where each bin needs its images
LETTER, LINE = 7, 14  # about a letter's width, and the distance of two lines of text
DARKER, SAME, LIGHTER = (10, 50, 110), (150, 150, 150), (255, 222, 160)  # in greys too from dark to light
PERCENTS = [(v, f"{100 * v:.0f} %") for v in (0, 0.25, 0.5, 0.75, 1)]


@dataclass(frozen=True)
class Shape:
    """An element of SVG: its tag, its look (a class of the page's style), where it is, its text."""

    tag: str
    look: str
    place: dict[str, str]
    text: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure: its title, its shapes, and its numbers."""

    title: str
    shapes: Sequence[Shape]
    table: Table

    @property
    def told(self) -> str:
        """The numbers as sentences, for who cannot see the figure."""
        first, *names = self.table.heading
        lines = []
        for place, *cells in self.table.lines:
            told = ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True))
            lines.append(f"{first} {place}: {told}.")
        return " ".join(lines)


@dataclass(frozen=True)
class Line:
    """A line of a curve: its name, its look, a number at each place."""

    name: str
    look: str
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Panel:
    """Where values come to lie."""

    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    right: int = RIGHT  # left free there

    def across(self, value: float) -> float:
        """How far right a value is."""
        low, high = self.x
        return LEFT + (value - low) / (high - low or 1.0) * (WIDTH - LEFT - self.right)

    def down(self, value: float) -> float:
        """How far down a value is."""
        low, high = self.y
        return FOOT - (value - low) / (high - low or 1.0) * (FOOT - TOP)

    def way(self, points: Iterable[tuple[float, float]]) -> str:
        """The path through the points, those that are not known left out."""
        known = [f"{self.across(x):.1f} {self.down(y):.1f}" for x, y in points if np.isfinite(y)]
        return "M" + "L".join(known) if known else ""


def draw_curves(
    title: str, lines: Sequence[Line], at: Sequence[float], *, names: Sequence[str], across: str
) -> Drawing:
    """Shares at rising budgets, each line with the band of its intervals and its name at its end.

    Args:
        title: of the figure.
        lines: with a number at each budget.
        at: the budgets.
        names: of the budgets, as people write them.
        across: the name of what lies across.
    """
    panel = Panel((0.0, max(at)), right=20 + LETTER * max(len(line.name) for line in lines))
    shapes = _axes(panel, _space_out(panel, at, names), across)
    ends = []
    for line in lines:
        numbers = list(zip(at, line.numbers, strict=True))
        edge = [(x, n.low) for x, n in numbers] + [(x, n.high) for x, n in reversed(numbers)]
        middle = [(x, n.estimate) for x, n in numbers if np.isfinite(n.estimate)]
        shapes.append(_shape("path", f"band {line.look}", d=panel.way(edge)))
        shapes += _line(panel, middle, line.look)
        ends += [(panel.down(y), line) for _, y in middle[-1:]]
    below = 0.0
    for height, line in sorted(ends, key=lambda end: end[0]):
        below = max(height, below + LINE)
        shapes.append(_text(f"name {line.look}", line.name, WIDTH - panel.right + 9, below + 4))
    rows = [[name, *(tell_count(line.numbers[i]) for line in lines)] for i, name in enumerate(names)]
    return Drawing(title, shapes, Table.of([["change", *(line.name for line in lines)], *rows]))


def draw_distributions(
    before: Array, after: Array, right: NDArray[np.bool_], *, threshold: float
) -> list[Drawing]:
    """Histograms of the confidence and reliability, before and in the worst case."""
    stages = {"before the change": before, "in the worst case": after}
    heights = tallest(stages.values(), right)
    drawn = [
        histogram(f"Answers by confidence, {of}", tops, right, threshold=threshold, heights=heights)
        for of, tops in stages.items()
    ]
    for (of, tops), look in zip(stages.items(), ("noise", "attack"), strict=True):
        drawn.append(draw_reliability(f"How often answers are right, {of}", tops, right, look=look))
    return drawn


def tallest(stages: Iterable[Array], right: NDArray[np.bool_]) -> tuple[int, int]:
    """The heights that all of these histograms need, upwards and downwards."""
    up, down = zip(*(map(np.max, _bins(confidence, right)) for confidence in stages), strict=True)
    return int(max(1, *up)), int(max(1, *down, max(up) // 3))


def histogram(
    title: str, confidence: Array, right: NDArray[np.bool_], *, threshold: float, heights: tuple[int, int]
) -> Drawing:
    """How many answers are how sure: right ones upwards, wrong ones downwards.

    `heights` are of both sides, so that the figures before and after can be compared.
    """
    top, foot = heights
    panel = Panel(y=(-foot, top))
    edge = panel.across(threshold)
    field = {"x": LEFT, "y": TOP, "width": edge - LEFT, "height": FOOT - TOP}
    shapes = [_shape("rect", "referred", **field)]
    shapes += _axes(panel, PERCENTS, "confidence", [(v, str(abs(v))) for v in (-foot, 0, top)])
    edges, rows = np.linspace(0, 1, BINS + 1), [["confidence", "right", "wrong"]]
    for low, high, up, below in zip(edges[:-1], edges[1:], *_bins(confidence, right), strict=True):
        side = {"x": panel.across(low) + 0.5, "width": panel.across(high) - panel.across(low) - 1}
        for look, start, count in (("right", up, up), ("wrong", 0, below)):
            size = {"y": panel.down(start), "height": panel.down(0) - panel.down(count)}
            shapes += [_shape("rect", f"bar {look}", **side, **size)] if count else []
        rows += [[f"{percent(low)} to {percent(high)}", f"{up}", f"{below}"]] if up or below else []
    shapes.append(_shape("path", "threshold", d=f"M{edge:.1f} {TOP}V{FOOT}"))
    for words, y in (("right answers ↑", TOP + LINE), ("wrong answers ↓", FOOT - 6)):
        shapes.append(_text("note", words, LEFT + 6, y))
    return Drawing(title, shapes, Table.of(rows))


def draw_reliability(title: str, confidence: Array, right: NDArray[np.bool_], *, look: str) -> Drawing:
    """How often answers of a confidence are right: on the diagonal it means what it says."""
    panel = Panel()
    shapes = _axes(panel, PERCENTS, "confidence")
    shapes.append(_shape("path", "even", d=panel.way([(0, 0), (1, 1)])))
    shapes.append(_text("note", "share that is right", LEFT + 6, TOP + LINE))
    rows, points = [["confidence", "right"]], []
    places = np.searchsorted(np.arange(1, COARSE) / COARSE, confidence, side="left")
    for chosen in (places == i for i in range(COARSE)):
        if chosen.any():
            number, x = share(right[chosen]), float(confidence[chosen].mean())
            ends = [(x, number.low), (x, number.high)]
            shapes.append(_shape("path", f"whisker {look}", d=panel.way(ends)))
            points.append((x, number.estimate))
            rows.append([percent(x), tell_count(number)])
    return Drawing(title, [*shapes, *_line(panel, points, look)], Table.of(rows))


def bar(number: Number) -> tuple[Shape, ...]:
    """A share as a bar of 100 by 10, with its interval as a whisker; its text stands beside it."""
    if not np.isfinite(number.estimate):
        return ()
    low, middle, high = (100 * v for v in (number.low, number.estimate, number.high))
    ends = f"M{low:.1f} 5H{high:.1f}M{low:.1f} 1V9M{high:.1f} 1V9" if np.isfinite(high - low) else ""
    return (
        _shape("rect", "rail", width=100, height=10),
        _shape("rect", "bar", width=middle, height=10),
        _shape("path", "whisker", d=ends),
    )


def picture(pixels: ArrayLike, *, limit: int) -> tuple[str, bool]:
    """An image (c, h, w) in [0, 1] as a data URI of at most `limit` letters, and whether it is exact.

    One channel is grey, three are colours, and of any other number the mean is shown. What is too
    large as a PNG is made smaller, the largest size that fits.
    """
    array = np.asarray(pixels, dtype=np.float64)
    array = array if len(array) in (1, 3) else array.mean(axis=0, keepdims=True)
    return _fit_into(array.clip(0, 1), limit)


def change(clean: ArrayLike, attacked: ArrayLike, *, limit: int) -> tuple[str, float]:
    """The change of each pixel as a picture, and the largest there is, in [0, 1].

    Of the channels the one that changes most. Dark is darker, light is lighter, grey is as it was:
    the order is one of brightness, so that the sign outlasts a printer without colours.
    """
    delta = np.asarray(attacked, dtype=np.float64) - np.asarray(clean, dtype=np.float64)
    most = np.take_along_axis(delta, np.abs(delta).argmax(axis=0)[None], axis=0)[0]
    largest = float(np.abs(most).max())
    scaled = most / (largest or 1.0)
    colors = [np.interp(scaled, (-1, 0, 1), ends) for ends in zip(DARKER, SAME, LIGHTER, strict=True)]
    return _fit_into(np.stack(colors) / 255, limit)[0], largest


def _fit_into(array: Array, limit: int) -> tuple[str, bool]:
    pixels = np.rint(array * 255).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
    scale, text = 1.0, _uri(image)
    while len(text) > limit and scale > 1e-3:
        scale *= min(0.9, 0.95 * math.sqrt(limit / len(text)))
        width, height = (max(1, round(side * scale)) for side in image.size)
        text = _uri(image.resize((width, height), Image.Resampling.BOX))
    return text, scale == 1


def _uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _bins(confidence: Array, right: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """How many right and how many wrong answers are in each bin."""
    edges = np.linspace(0, 1, BINS + 1)
    return [np.histogram(confidence[chosen].clip(0, 1), edges)[0] for chosen in (right, ~right)]


def _axes(
    panel: Panel,
    across: Sequence[tuple[float, str]],
    name: str,
    up: Sequence[tuple[float, str]] = PERCENTS,
) -> list[Shape]:
    """Grid, ticks and the name of what lies across."""
    shapes = []
    for value, text in up:
        y = panel.down(value)
        shapes.append(_shape("path", "grid", d=f"M{LEFT} {y:.1f}H{WIDTH - panel.right}"))
        shapes.append(_text("tick up", text, LEFT - 6, y + 4))
    for value, text in across:
        shapes.append(_text("tick", text, panel.across(value), FOOT + 16))
    middle = (LEFT + WIDTH - panel.right) / 2
    return [*shapes, _text("tick", name, middle, HEIGHT - 8)]


def _space_out(panel: Panel, at: Sequence[float], names: Sequence[str]) -> list[tuple[float, str]]:
    """The places whose names do not run into one another, the last one among them."""
    chosen: list[tuple[float, str]] = []
    for value, name in sorted(zip(at, names, strict=True), reverse=True):
        room = LETTER * (len(name) + len(chosen[-1][1])) / 2 + LETTER if chosen else 0
        if not chosen or panel.across(chosen[-1][0]) - panel.across(value) >= room:
            chosen.append((value, name))
    return chosen


def _line(panel: Panel, points: Sequence[tuple[float, float]], look: str) -> list[Shape]:
    """A line through points: dots for what attacks did, squares for what is beside it."""
    shapes = [_shape("path", f"line {look}", d=panel.way(points))]
    for x, y in ((panel.across(x), panel.down(y)) for x, y in points):
        if look == "attack":
            shapes.append(_shape("circle", f"mark {look}", cx=x, cy=y, r=3.5))
        else:
            shapes.append(_shape("rect", f"mark {look}", x=x - 3, y=y - 3, width=6, height=6))
    return shapes


def _text(look: str, words: str, x: float, y: float) -> Shape:
    return Shape("text", look, {"x": f"{x:.1f}", "y": f"{y:.1f}"}, words)


def _shape(tag: str, look: str, **place: float | str) -> Shape:
    """The shape, its numbers as short as can be seen."""
    return Shape(tag, look, {name: v if isinstance(v, str) else f"{v:.1f}" for name, v in place.items()})

"""The paper's Figures 1, 2, S1 and S2 from any records: each has its numbers as a frame, and a plot."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import matplotlib as mpl
import polars as pl
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from poise import store
from poise.checks import InputError, check_number
from poise.records import Records
from poise.report.escaping import label, plain

RIGHT, WRONG, INK = "#2a6f97", "#e07a1f", "#444444"
STAGES = ("before", "after")

Picture: TypeAlias = Float[Tensor, "c h w"]  # one image
Row: TypeAlias = Float[Tensor, " k"]  # its probabilities
Trace: TypeAlias = Float[Tensor, "t k"]  # one image's probabilities at every point of a walk

NAMED = (RIGHT, WRONG, "#3a9d5d", "#8e5aa8", "#c23b4e", "#8a7a1f")  # a color each for so many classes
REST, FAINT = "#c8c8c8", 0.05  # a class that never gets so likely is not named
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, spread evenly whatever their number


class Display(Protocol):
    """A figure whose numbers can be had."""

    def frame(self) -> pl.DataFrame:
        """The numbers that the plot shows."""
        ...

    def plot(self) -> Figure:
        """The figure."""
        ...


@dataclass(frozen=True, eq=False)
class Perturbations:
    """One image and its change under every attack, on one colour scale (the paper's Figure 1).

    Attributes:
        image: the clean image.
        changed: the attacked image, by attack.
        clean: the probabilities at the clean image.
        attacked: those at the attacked image, by attack.
    """

    image: Picture
    changed: Mapping[str, Picture]
    clean: Row
    attacked: Mapping[str, Row]

    @classmethod
    def of(cls, records: Mapping[str, Records], index: int) -> Perturbations:
        """Those of image `index`, one of the images that the records of every attack hold."""
        first = next(iter(records.values()))
        return cls(
            first.x[index],
            {name: r.x_adv[index] for name, r in records.items()},
            first.clean[index],
            {name: r.attacked[index] for name, r in records.items()},
        )

    def frame(self) -> pl.DataFrame:
        """The change of every pixel, by attack, averaged over the channels."""
        parts = []
        for name, delta in self._deltas().items():
            height, width = delta.shape
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            values = {"row": row, "column": column, "delta": delta}
            flat = {key: value.flatten().numpy() for key, value in values.items()}
            parts.append(pl.DataFrame({"attack": [plain(name)] * delta.numel(), **flat}))
        return pl.concat(parts)

    def plot(self) -> Figure:
        """The image, then a panel an attack; the numbers are the confidences."""
        deltas = self._deltas()
        figure = Figure(figsize=(1.75 * (len(deltas) + 1) + 0.6, 2.5), layout="constrained")
        axes = figure.subplots(1, len(deltas) + 1)
        draw_picture(axes[0], self.image)
        axes[0].set_title(f"image\n{float(self.clean.max()):.2f}")
        limit = max(1e-12, max(float(delta.abs().max()) for delta in deltas.values()))
        for ax, (name, delta) in zip(axes[1:], deltas.items(), strict=True):
            shown = ax.imshow(delta.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            probs = self.attacked[name]
            lost = int(probs.argmax()) != int(self.clean.argmax())
            ax.set_title(
                f"{label(name, width=16)}\n{float(probs.max()):.2f}{' label lost' if lost else ''}"
            )
            ax.set_axis_off()
        figure.colorbar(shown, ax=list(axes[1:]), shrink=0.65, label="change of the pixel")
        return figure

    def _deltas(self) -> dict[str, Tensor]:
        return {name: (x_adv - self.image).mean(dim=0) for name, x_adv in self.changed.items()}


@dataclass(frozen=True, eq=False)
class ConfidenceGrid:
    """Confidence histograms before and after an attack, a row a defense (the paper's Figure 2)."""

    rows: Mapping[str, Records]
    attack: str
    bins: int = 20

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("ConfidenceGrid needs the records of at least one defense, got none")

    def frame(self) -> pl.DataFrame:
        """Counts a bin of width 1 / bins, by defense, stage and correctness of the clean answer."""
        parts = []
        for name, r in self.rows.items():
            for stage, probs in zip(STAGES, (r.clean, r.attacked), strict=True):
                for answer, chosen in (("correct", r.correct), ("incorrect", ~r.correct)):
                    msp = probs.max(dim=1).values[chosen]
                    counts = torch.histc(msp.double(), bins=self.bins, min=0, max=1)
                    edges = [i / self.bins for i in range(self.bins + 1)]
                    of = {"defense": plain(name), "stage": stage, "answer": answer}
                    part = {"lower": edges[:-1], "upper": edges[1:], "count": counts.long().tolist()}
                    parts.append(pl.DataFrame(of | part))
        return pl.concat(parts)

    def plot(self) -> Figure:
        """Two panels a defense, all on the same axes; counts as a share of each answer's number."""
        frame = self.frame()
        figure = Figure(figsize=(7.2, 0.6 + 1.4 * len(self.rows)), layout="constrained")
        axes = figure.subplots(len(self.rows), 2, sharex=True, sharey=True, squeeze=False)
        for pair, name in zip(axes, self.rows, strict=True):
            for ax, stage in zip(pair, STAGES, strict=True):
                draw_bars(ax, frame.filter(defense=plain(name), stage=stage))
                strip_frame(ax)
            pair[0].set_ylabel(label(name))
            pair[0].legend(loc="upper left", frameon=False)
        for ax, title in zip(axes[0], ("before", f"after {label(self.attack)}"), strict=True):
            ax.set(title=title, xlim=(0, 1))
        for ax in axes[-1]:
            ax.set_xlabel("confidence (MSP)")
        figure.supylabel("share of answers", fontsize="medium")
        return figure


@dataclass(frozen=True, eq=False)
class ProbabilityTrace:
    """Each class's probability over the steps of one image's walk, a panel an attack (Figure S1).

    Attributes:
        traces: the probabilities (steps + 1, k), by attack; the walks may differ in length.
        classes: the k classes' names.
    """

    traces: Mapping[str, Trace]
    classes: Sequence[str]

    def __post_init__(self) -> None:
        if not self.traces:
            raise InputError("ProbabilityTrace needs the trace of at least one attack, got none")
        for trace in self.traces.values():
            _check_names(self.classes, trace)

    def frame(self) -> pl.DataFrame:
        """The probability of every class at every step, by attack; step 0 is the clean image."""
        parts = []
        for name, trace in self.traces.items():
            steps, k = trace.shape
            columns = {
                "attack": [plain(name)] * (steps * k),
                "step": [step for step in range(steps) for _ in range(k)],
                "class": [plain(name) for name in self.classes] * steps,
                "probability": trace.flatten().numpy(),
            }
            parts.append(pl.DataFrame(columns))
        return pl.concat(parts)

    def plot(self) -> Figure:
        """Lines over the steps; the squares below them tell the most likely class of each step."""
        colors = self._colors()
        figure = Figure(figsize=(2.7 * len(self.traces) + 1.2, 2.9), layout="constrained")
        axes = figure.subplots(1, len(self.traces), sharey=True, squeeze=False)[0]
        for ax, (name, trace) in zip(axes, self.traces.items(), strict=True):
            steps = range(len(trace))
            for j in sorted(range(len(self.classes)), key=lambda j: j in colors):  # the named on top
                ax.plot(steps, trace[:, j].numpy(), color=colors.get(j, REST), linewidth=1.3)
            top = [colors.get(j, REST) for j in trace.argmax(dim=1).tolist()]
            ax.scatter(steps, [-0.06] * len(trace), c=top, marker="s", s=9, linewidths=0)
            unrest = f"top class changes {oscillations(trace)}×\nconfidence regained {rebound(trace):.2f}"
            ax.set(title=f"{label(name)}\n{unrest}", xlabel="step", ylim=(-0.1, 1.03))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            strip_frame(ax)
        axes[0].set_ylabel("probability")
        named = [(label(self.classes[j]), color) for j, color in colors.items()]
        named += [("others", REST)] * (len(colors) < len(self.classes))
        handles = [axes[0].plot([], [], color=color)[0] for _, color in named]
        title = "squares:\ntop class"
        figure.legend(
            handles, [name for name, _ in named], title=title, loc="outside right center", frameon=False
        )
        return figure

    def _colors(self) -> dict[int, str]:
        """The color of each class that gets a name: those that are the most likely at their height."""
        height = torch.cat(list(self.traces.values())).amax(dim=0)
        order = [j for j in height.argsort(descending=True, stable=True).tolist() if height[j] >= FAINT]
        return dict(zip(order, NAMED, strict=False))


@dataclass(frozen=True, eq=False)
class ClassConfidence:
    """The confidence of every image after the attack, by the class of its clean answer (Figure S2).

    Attributes:
        records: of the attack.
        classes: the k classes' names.
        threshold: the confidence at and above which an answer counts as above.
    """

    records: Records
    classes: Sequence[str]
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, 1, hint="it is a confidence")
        _check_names(self.classes, self.records.clean)

    def frame(self) -> pl.DataFrame:
        """One row an image: its clean prediction, its confidence after the attack, above or not."""
        confidence = self.records.attacked.max(dim=1).values
        return pl.DataFrame(
            {
                "image": range(len(self.records)),
                "predicted": [plain(self.classes[j]) for j in self.records.clean.argmax(dim=1).tolist()],
                "confidence": confidence.numpy(),
                "above": (confidence >= self.threshold).numpy(),
            }
        )

    def plot(self) -> Figure:
        """A strip a class, with the threshold and how many lie above and below it."""
        frame = self.frame()
        width = max(3.6, 0.9 * len(self.classes) + 0.8)
        figure = Figure(figsize=(width, 3.0), layout="constrained")
        ax = figure.subplots()
        ax.axhline(self.threshold, color=INK, linewidth=0.8, linestyle="--")
        labels = []
        for place, name in enumerate(self.classes):
            part = frame.filter(predicted=plain(name))
            _strip(ax, place, part)
            above = int(part["above"].sum())
            labels.append(f"{label(name, width=16)}\n{above} above\n{len(part) - above} below")
        ax.set_xticks(range(len(labels)), labels)
        ax.tick_params(axis="x", length=0)
        ax.set(xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1.03))
        ax.set(ylabel="confidence (MSP)", xlabel="clean prediction")
        strip_frame(ax)
        return figure


def oscillations(trace: Trace) -> int:
    """How many times the most likely class changes from one step to the next.

    >>> oscillations(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]]))
    2
    """
    top = trace.argmax(dim=1)
    return int((top[1:] != top[:-1]).sum())


def rebound(trace: Trace) -> float:
    """How much the clean prediction's probability rises over all steps that raise it.

    0 where a walk only ever goes down. It tells of unrest that `oscillations` cannot see: a
    step-back rule holds the top class, but it keeps steps that raise the confidence.

    >>> round(rebound(torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.75, 0.25], [0.6, 0.4], [0.7, 0.3]])), 6)
    0.35
    """
    p = trace[:, trace[0].argmax()].double()
    return float(p.diff().clamp_min(0).sum())


def save(display: Display, folder: str | Path, stem: str) -> Path:
    """Write STEM.svg and, with the numbers it shows, STEM.csv into the folder; the picture's path.

    The same numbers give the same bytes.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    texts = {f"{stem}.csv": display.frame().write_csv(), f"{stem}.svg": svg(display)}
    with store.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            store.write_text(folder / name, text)
    return folder / f"{stem}.svg"


def svg(display: Display) -> str:
    """The figure as SVG text: the same numbers give the same text, whatever the day."""
    stream = io.StringIO()
    with (
        mpl.rc_context({"svg.hashsalt": "poise", "font.size": 9, "axes.titlesize": 9}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # a name in letters that the font lacks: boxes stand there
        display.plot().savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def draw_bars(ax: Axes, counts: pl.DataFrame) -> None:
    """Draw a defense's stage of a `ConfidenceGrid`: each answer's counts as a share of its number."""
    for answer, color in (("correct", RIGHT), ("incorrect", WRONG)):
        part = counts.filter(answer=answer)
        lower, count = part["lower"].to_numpy(), part["count"].to_numpy()
        ax.bar(
            lower,
            count / max(1, count.sum()),
            width=part["upper"].to_numpy() - lower,
            align="edge",
            color=color,
            alpha=0.6,
            label=f"{answer} ({count.sum()})",
        )


def draw_picture(ax: Axes, image: Picture) -> None:
    """Draw an image of one channel or three."""
    grey = image.shape[0] == 1
    pixels = image[0] if grey else image.permute(1, 2, 0)
    ax.imshow(pixels.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_axis_off()


def strip_frame(ax: Axes) -> None:
    """Take away the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)


def _strip(ax: Axes, place: int, part: pl.DataFrame) -> None:
    """Draw a class's points side by side within its column."""
    aside = [0.7 * ((i + 1) * GOLDEN % 1 - 0.5) for i in range(len(part))]
    colors = [RIGHT if above else WRONG for above in part["above"]]
    spots = [place + by for by in aside]
    size = min(14.0, max(3.0, 600 / max(1, len(part))))
    ax.scatter(
        spots, part["confidence"].to_numpy(), s=size, c=colors, alpha=0.7, linewidths=0, clip_on=False
    )


def _check_names(classes: Sequence[str], probs: Tensor) -> None:
    """Refuse names that are not one each for the columns."""
    if probs.ndim != 2 or len(classes) != probs.shape[1] or len(set(classes)) != len(classes):
        raise InputError(
            f"classes must be one name each for the probabilities' columns, got {len(set(classes))} "
            f"different names for shape {tuple(probs.shape)}: give the data set's .classes"
        )

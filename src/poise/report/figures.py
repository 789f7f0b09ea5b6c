"""Figures: data first. Every display has its numbers as a frame, and a plot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import matplotlib as mpl
import polars as pl
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from poise.metrics import reliability
from poise.records import Records
from poise.report.escaping import label, plain
from poise.report.runs import Audit

RIGHT, WRONG, INK = "#2a6f97", "#e07a1f", "#444444"
STAGES = ("before", "after")

Picture: TypeAlias = Float[Tensor, "c h w"]  # one image
Row: TypeAlias = Float[Tensor, " k"]  # its probabilities


class Display(Protocol):
    """A figure whose numbers can be had."""

    def frame(self) -> pl.DataFrame:
        """The numbers that the plot shows."""
        ...

    def plot(self) -> Figure:
        """The figure."""
        ...


@dataclass(frozen=True, eq=False)
class ConfidenceHistogram:
    """The confidence of right and wrong answers before and after an attack (the paper's Figure 2)."""

    records: Records
    attack: str
    bins: int = 20

    def frame(self) -> pl.DataFrame:
        """Counts a bin of width 1 / bins, by stage and correctness of the clean answer."""
        r, parts = self.records, []
        for stage, probs in zip(STAGES, (r.clean, r.attacked), strict=True):
            for answer, chosen in (("correct", r.correct), ("incorrect", ~r.correct)):
                msp = probs.max(dim=1).values[chosen]
                counts = torch.histc(msp.double(), bins=self.bins, min=0, max=1)
                edges = [i / self.bins for i in range(self.bins + 1)]
                part = {"lower": edges[:-1], "upper": edges[1:], "count": counts.long().tolist()}
                parts.append(pl.DataFrame({"stage": stage, "answer": answer, **part}))
        return pl.concat([part.select("stage", "answer", "lower", "upper", "count") for part in parts])

    def plot(self) -> Figure:
        """Two panels, before and after; each answer's counts as a share of its own number."""
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, stage in zip(axes, STAGES, strict=True):
            draw_bars(ax, self.frame().filter(stage=stage))
            ax.set(title=stage if stage == "before" else f"after {label(self.attack)}", xlim=(0, 1))
            ax.set_xlabel("confidence (MSP)")
            strip_frame(ax)
        axes[0].set_ylabel("share of answers")
        axes[0].legend(loc="upper left", frameon=False)
        return figure


@dataclass(frozen=True, eq=False)
class ReliabilityDiagram:
    """Accuracy against confidence, bin by bin, before and after an attack."""

    records: Records
    attack: str
    bins: int = 15

    def frame(self) -> pl.DataFrame:
        """Bins (lower, upper] with their count, mean confidence and accuracy, by stage."""
        r, parts = self.records, []
        for stage, probs in zip(STAGES, (r.clean, r.attacked), strict=True):
            part = reliability(probs, r.y, bins=self.bins)
            columns = {name: value.numpy() for name, value in vars(part).items()}
            parts.append(pl.DataFrame({"stage": [stage] * self.bins, **columns}))
        return pl.concat(parts)

    def plot(self) -> Figure:
        """Two panels, before and after; a dot's area is the share of the images in its bin."""
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, stage in zip(axes, STAGES, strict=True):
            part = self.frame().filter((pl.col("stage") == stage) & (pl.col("count") > 0))
            ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
            count, confidence, accuracy = (
                part[name].to_numpy() for name in ("count", "confidence", "accuracy")
            )
            area = 15 + 400 * count / count.sum()
            ax.vlines(confidence, confidence, accuracy, WRONG, linewidth=1)
            ax.scatter(confidence, accuracy, s=area, c=RIGHT, alpha=0.8, clip_on=False)
            ax.set(title=stage if stage == "before" else f"after {label(self.attack)}")
            ax.set(xlabel="confidence", xlim=(0, 1), ylim=(-0.03, 1.03), aspect="equal")
            strip_frame(ax)
        axes[0].set_ylabel("accuracy")
        return figure


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
class Heatmaps:
    """The `Perturbations` of one image of an audit."""

    audit: Audit

    @property
    def index(self) -> int:
        """Of the images kept: the right answer that is least sure in its worst case."""
        r = self.audit.worst.records
        kept = len(r.x)
        msp = r.attacked.max(dim=1).values[:kept]
        return int((msp + 2 * (~r.correct[:kept])).argmin())

    def frame(self) -> pl.DataFrame:
        """The change of every pixel, by attack, averaged over the channels."""
        return self._shown().frame()

    def plot(self) -> Figure:
        """The image, then a panel an attack."""
        return self._shown().plot()

    def _shown(self) -> Perturbations:
        return Perturbations.of({a.name: a.records for a in self.audit.attacked}, self.index)


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
    """Draw a stage of a `ConfidenceHistogram`'s frame: each answer's counts as a share of its number."""
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

"""Figures: data first. Every display has its numbers as a frame, and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poise.metrics import reliability
from poise.records import Records
from poise.report.runs import Audit
from poise.shapes import Images

RIGHT, WRONG, INK = "#2a6f97", "#e07a1f", "#444444"
STAGES = ("before", "after")


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
            for answer, color in (("correct", RIGHT), ("incorrect", WRONG)):
                part = self.frame().filter(stage=stage, answer=answer)
                count = part["count"].to_numpy()
                ax.bar(
                    part["lower"].to_numpy(),
                    count / max(1, count.sum()),
                    width=1 / self.bins,
                    align="edge",
                    color=color,
                    alpha=0.6,
                    label=f"{answer} ({count.sum()})",
                )
            ax.set(title=stage if stage == "before" else f"after {self.attack}", xlim=(0, 1))
            ax.set_xlabel("confidence (MSP)")
            _bare(ax)
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
            ax.set(title=stage if stage == "before" else f"after {self.attack}")
            ax.set(xlabel="confidence", xlim=(0, 1), ylim=(-0.03, 1.03), aspect="equal")
            _bare(ax)
        axes[0].set_ylabel("accuracy")
        return figure


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """One image and its change under every attack, on one colour scale (the paper's Figure 1)."""

    audit: Audit

    @property
    def index(self) -> int:
        """Of the images kept: the right answer that the strongest attack makes least sure."""
        r = self.audit.strongest.records
        kept = len(r.x)
        msp = r.attacked.max(dim=1).values[:kept]
        return int((msp + 2 * (~r.correct[:kept])).argmin())

    def frame(self) -> pl.DataFrame:
        """The change of every pixel, by attack, averaged over the channels."""
        parts = []
        for name, delta in self._deltas().items():
            height, width = delta.shape
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            values = {"row": row, "column": column, "delta": delta}
            flat = {key: value.flatten().numpy() for key, value in values.items()}
            parts.append(pl.DataFrame({"attack": [name] * delta.numel(), **flat}))
        return pl.concat(parts)

    def plot(self) -> Figure:
        """The image, then a panel an attack."""
        deltas = self._deltas()
        figure = Figure(figsize=(1.75 * (len(deltas) + 1) + 0.6, 2.5), layout="constrained")
        axes = figure.subplots(1, len(deltas) + 1)
        records = self.audit.strongest.records
        confidence = float(records.clean[self.index].max())
        _picture(axes[0], records.x[self.index])
        axes[0].set_title(f"image\n{confidence:.2f}")
        limit = max(1e-12, max(float(delta.abs().max()) for delta in deltas.values()))
        for ax, attacked in zip(axes[1:], self.audit.attacked, strict=True):
            shown = ax.imshow(deltas[attacked.name].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            probs = attacked.records.attacked[self.index]
            lost = int(probs.argmax()) != int(records.clean[self.index].argmax())
            ax.set_title(f"{attacked.name}\n{float(probs.max()):.2f}{' label lost' if lost else ''}")
            ax.set_axis_off()
        figure.colorbar(shown, ax=list(axes[1:]), shrink=0.8, label="change of the pixel")
        return figure

    def _deltas(self) -> dict[str, torch.Tensor]:
        return {
            a.name: (a.records.x_adv - a.records.x)[self.index].mean(dim=0) for a in self.audit.attacked
        }


def _picture(ax: Axes, image: Images) -> None:
    grey = image.shape[0] == 1
    pixels = image[0] if grey else image.permute(1, 2, 0)
    ax.imshow(pixels.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_axis_off()


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)

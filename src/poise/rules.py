"""Step rules: whether an image keeps the step it tried, and how long its next one is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch

from poise.checks import check_choice, check_number, settle
from poise.objectives import check_margin, holds
from poise.shapes import Mask, PerSample, Point

Accept: TypeAlias = Literal["label", "improving"]
StepRule: TypeAlias = Callable[[Point, Point, PerSample], tuple[Mask, PerSample]]


def keeps_label(rule: StepRule) -> bool:
    """Whether no step that changes the label is kept, as the rule says by `keeps_label`; not without it."""
    found: bool = getattr(rule, "keeps_label", False)
    return found


@dataclass(frozen=True)
class Always:
    """Keep every step; the size stays."""

    keeps_label: ClassVar[bool] = False

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        return torch.ones_like(size, dtype=torch.bool), size


@dataclass(frozen=True)
class StepBack:
    """Step back where the label is lost, and adapt the size (eqs. 5-6).

    The label counts as kept while y is the prediction and leads its rival by `margin` in
    probability. A margin of 0 is eq. 6, but leaves images on ties that another batch size or precision
    decides otherwise. With `improving` a step that keeps the label without lowering the loss is not kept
    either, and its size stays: the listing of Algorithm 1 (lines 9-13), which can stand still for good,
    since neither the point nor the size changes then.
    """

    shrink: float = 0.5
    grow: float = 1.1  # λ of eq. 5
    margin: float = 0.0
    improving: bool = False
    keeps_label: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self)
        check_number("shrink", self.shrink, 0, 1)
        check_number("grow", self.grow, 1, hint="it is λ of eq. 5, the factor after a good step")
        check_margin(self.margin)

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        kept = holds(new.logits, new.y, self.margin)
        improved = kept & (new.loss < at.loss)
        size = torch.where(kept, torch.where(improved, size * self.grow, size), size * self.shrink)  # eq. 5
        return improved if self.improving else kept, size  # eq. 6


def step_back(grow: float, margin: float, accept: Accept) -> StepBack:
    """The paper's rule, by eq. 6 ("label") or by the listing of Algorithm 1 ("improving").

    >>> step_back(1.1, 0.0, "improving").improving
    True
    """
    check_choice("accept", accept, ("label", "improving"))
    return StepBack(grow=grow, margin=margin, improving=accept == "improving")


@dataclass(frozen=True)
class Backtrack:
    """Keep a step that improves and keeps the label; take back and halve any other.

    The rule to aim at a target with, where a step can be too long without losing the label.
    """

    shrink: float = 0.5
    grow: float = 1.1
    margin: float = 0.0
    keeps_label: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self)
        StepBack(self.shrink, self.grow, self.margin)  # the same bounds

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        kept, _ = StepBack(margin=self.margin)(at, new, size)
        kept = kept & (new.loss < at.loss)
        return kept, torch.where(kept, size * self.grow, size * self.shrink)


@dataclass(frozen=True)
class KeepPrediction:
    """Keep a step while the prediction stays what it is, whatever y; the size stays."""

    keeps_label: ClassVar[bool] = True

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        return new.logits.argmax(dim=1) == at.logits.argmax(dim=1), size

"""An attack that walks on a prepared copy of the model and answers to the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from poise.attacks import Attack
from poise.attacks.aim import Aim, check_declared, takes_true_labels
from poise.attacks.common import attack_call, attacked_logits, clean_logits
from poise.checks import InputError, check_choice, check_number, settle
from poise.draws import Draw
from poise.fast.prepare import LAYOUTS, Layout, copy_for, notes_on
from poise.objectives import UNITS, Confidence
from poise.objectives import holds as holds_label
from poise.rules import StepRule
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, Point, per_image
from poise.threat import Ball, ball_round, between

Precision: TypeAlias = Literal["float32", "bf16"]
MARGIN = 5e-5  # the least lead of p_y at the end; the attacks themselves leave 1e-4
HALVINGS = 6


@dataclass(frozen=True, kw_only=True)
class Fast:
    """The same attack, faster: opt-in, with every label checked on the model itself in its own precision.

    The walk is on a copy of the model: frozen, its BatchNorms folded, in the memory layout `layout`.
    With precision="bf16" the first `share` of the steps is taken in bfloat16, the rest in float32 from
    where they led. Two forwards by the model itself, at x and at the result, then check that the label
    is kept and that the confidence has not gone the other way than the attack wants; an image that fails
    goes back towards x until it holds, at last to x itself. Of an attack that may change the label itself
    (against the true label, or `dropout_accumulated`) only finite logits are asked.

    Results are not bit-equal to the plain attack's. By layout="auto" they hang on a stopwatch too: the
    notes of a run tell which layout was taken, and naming it gives them again.

    Args:
        attack: any attack that says what it is for; "bf16" is for those with steps and a ball as fields.
        precision: "float32", or "bf16" for the first steps.
        share: the share of the steps in low precision; 0.4 was chosen on images of CIFAR-10, where
            0.6 left attacks that step back weaker than the plain ones.
        layout: of the copy in memory, "contiguous" or "channels_last"; "auto" takes the faster one.
    """

    attack: Attack
    precision: Precision = "float32"
    share: float = 0.4
    layout: Layout = "auto"

    uses_labels = property(takes_true_labels)

    def __post_init__(self) -> None:
        settle(self)
        check_choice("precision", self.precision, ("float32", "bf16"))
        check_number("share", self.share, 0, 1, hint="it is the share of the steps in low precision")
        check_choice("layout", self.layout, ("auto", *LAYOUTS))
        check_declared(self.attack, type(self.attack).__name__)
        if self.precision == "bf16" and not _has(self.attack, "steps", "ball"):
            raise InputError(
                f"precision='bf16' needs an attack with steps and a ball, "
                f"got {type(self.attack).__name__}: use precision='float32'"
            )

    @property
    def aim(self) -> Aim:
        """As the attack."""
        return self.attack.aim

    def notes(self, model: Model) -> tuple[str, ...]:
        """What was chosen, or tried and left out, when the model was prepared, one sentence each."""
        return notes_on(model)

    @contextmanager
    def ready(self) -> Iterator[Fast]:
        """The attack itself: what it prepares is kept while the model lives."""
        yield self

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        logits = clean_logits(model, x, y)
        top = logits.argmax(dim=1)
        nets = copy_for(model, x, logits, low=self.precision == "bf16", layout=self.layout)
        full = nets.full or model
        label = top if y is None or self.aim.labels == "true" else y
        x_adv = _walk(self, full, nets.low, x, top if y is None else y, label, generator)
        return _check_labels_kept(model, self.aim, x, x_adv, label, logits, right=y is None or label == y)


Ready = Fast  # its name where what was prepared had to be kept by hand


@dataclass(frozen=True, eq=False)
class Around:
    """A ball round images of its own, whatever the walk takes for its centre, with steps of their own."""

    ball: Ball
    origin: Images
    scale: PerSample  # what each image's step is multiplied by

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        """The point of the ball round `origin` that stands for x."""
        return self.ball.project(x, self.origin, draw)

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        """As the ball, times the image's scale."""
        return self.ball.steepest(grad, draw) * per_image(self.scale).to(grad.dtype)

    def held(self, center: Images) -> Around:
        """The same, what depends on `origin` worked out once."""
        return replace(self, ball=ball_round(self.ball, self.origin))

    def sample(self, center: Images, draw: Draw) -> Images:
        """A random point of the ball round `origin`."""
        return self.ball.sample(self.origin, draw)


class Switching:
    """A model that is `low` for so many calls, then `full`."""

    def __init__(self, low: Model, full: Model, calls: int) -> None:
        self.low, self.full, self.calls = low, full, calls

    def __call__(self, x: Images) -> Logits:
        self.calls -= 1
        return self.low(x) if self.calls >= 0 else self.full(x)


class Watched:
    """A step rule that remembers the sizes it gave last."""

    def __init__(self, rule: StepRule, size: PerSample) -> None:
        self.rule, self.size = rule, size

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        kept, self.size = self.rule(at, new, size)
        return kept, self.size


def accelerated(attack: Attack, *, precision: Precision = "float32", layout: Layout = "auto") -> Fast:
    """The attack on its fast path; in float32 where it is not one that takes "bf16".

    >>> from poise.attacks import confsmooth, deepfool
    >>> [accelerated(attack, precision="bf16").precision for attack in (confsmooth(), deepfool())]
    ['bf16', 'float32']
    """
    able = _has(attack, "steps", "ball")
    return Fast(attack=attack, precision=precision if able else "float32", layout=layout)


def eager(attack: Attack) -> Attack:
    """The attack that a fast one runs on its copy; any other itself.

    >>> from poise.attacks import confsmooth
    >>> eager(accelerated(confsmooth())) == confsmooth() == eager(confsmooth())
    True
    """
    return attack.attack if isinstance(attack, Fast) else attack


def _has(attack: object, *names: str) -> bool:
    """Whether the attack is a frozen value with all these fields, which `replace` can change."""
    return is_dataclass(attack) and {*names} <= {field.name for field in fields(attack)}


def _walk(
    fast: Fast,
    full: Model,
    low: Model | None,
    center: Images,
    y: Labels,
    label: Labels,
    generator: torch.Generator | None,
) -> Images:
    """The attack on the prepared copies: in one precision, or in two legs."""
    attack: Any = fast.attack
    if low is None:
        return fast.attack(full, center, y, generator=generator)
    early = round(fast.share * attack.steps)
    if not _has(attack, "rule"):
        return fast.attack(Switching(low, full, early), center, y, generator=generator)
    rule = Watched(attack.rule, torch.full_like(center.flatten(1)[:, 0], attack.step))
    x_adv = replace(attack, steps=early, rule=rule)(low, center, y, generator=generator)
    if fast.aim.keeps_label:
        x_adv = _check_labels_kept(full, fast.aim, center, x_adv, label)
    ball = Around(attack.ball, center, rule.size / (attack.step or 1))
    onward = replace(attack, steps=attack.steps - early, ball=ball, random_start=False)
    led: Images = onward(full, x_adv, y, generator=generator)
    return led


def _check_labels_kept(
    model: Model,
    aim: Aim,
    center: Images,
    x_adv: Images,
    y: Labels,
    clean: Logits | None = None,
    *,
    right: Mask | bool = True,
) -> Images:
    """The attacked images where they hold on this model, else the farthest point from x found that does.

    An attack that keeps no label has nothing to hold: only finite logits are asked of it.
    """
    if not aim.keeps_label:
        attacked_logits(model, x_adv)
        return x_adv
    up = torch.ones_like(y)  # 1 where the confidence may not rise, −1 where it may not fall
    ways = {"lower": up, "higher": -up, "apart": torch.where(torch.as_tensor(right).to(y.device), up, -up)}
    way = ways.get(aim.wants, 0 * up)

    def holds(at: Images, chosen: Mask | slice) -> Mask:
        logits = attacked_logits(model, at)
        kept = holds_label(logits, y[chosen], MARGIN, units=UNITS // 2)
        if clean is not None:
            risen = Confidence()(logits, y[chosen]) - Confidence()(clean[chosen], y[chosen])
            kept &= way[chosen] * risen <= 0
        return kept

    failed = ~holds(x_adv, slice(None))
    if not bool(failed.any()):
        return x_adv
    start, end = center[failed], x_adv[failed]
    near, far = torch.zeros(len(end), device=end.device), torch.ones(len(end), device=end.device)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        kept = holds(between(start, end, middle), failed)
        near, far = torch.where(kept, middle, near), torch.where(kept, far, middle)
    x_adv = x_adv.clone()
    x_adv[failed] = between(start, end, near)
    return x_adv

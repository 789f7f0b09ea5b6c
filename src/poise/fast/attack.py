"""An attack that walks on a prepared copy of the model and answers to the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch

from poise.attacks.aim import Aim, Attack, aim_of, check_declared, takes_true_labels
from poise.attacks.auto import Auto
from poise.attacks.common import accepted, judged, rejudged
from poise.attacks.descent import Descent
from poise.checks import InputError, check_choice, check_number, settle
from poise.draws import Draw
from poise.fast.prepare import Prepared, prepare
from poise.objectives import UNITS, Confidence, Negative, Objective
from poise.objectives import holds as holds_label
from poise.rules import StepRule
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, Point, per_image
from poise.threat import Ball, between, held

Precision: TypeAlias = Literal["float32", "bf16"]
MARGIN = 5e-5  # the least lead of p_y at the end; the attacks themselves leave 1e-4
HALVINGS = 6


@dataclass(frozen=True, kw_only=True)
class Fast:
    """The same attack, faster: opt-in, with every label checked on the model itself in its own precision.

    The walk is on a copy of the model: frozen, its BatchNorms folded, its convolutions packed, in the
    memory layout that a short timed probe finds faster. With precision="bf16" the first `share` of the
    steps is taken in bfloat16, the rest in float32 from where they led. Two forwards by the model
    itself, at x and at the result, then check that the label is kept and that the attack's goal is no
    worse than at x; an image that fails goes back towards x until it holds, at last to x itself. Of an
    attack that may change the label itself (against the true label, or `dropout` with keep="last")
    only finite logits are asked.

    Results are not bit-equal to the plain attack's.

    Args:
        attack: any attack; "bf16" is for those with steps and a ball (`Descent`, `Auto`).
        precision: "float32", or "bf16" for the first steps.
        share: the share of the steps in low precision; 0.4 was chosen on images of CIFAR-10, where
            0.6 left attacks that step back weaker than the plain ones.
    """

    attack: Attack
    precision: Precision = "float32"
    share: float = 0.4

    def __post_init__(self) -> None:
        settle(self)
        check_choice("precision", self.precision, ("float32", "bf16"))
        check_number("share", self.share, 0, 1, hint="it is the share of the steps in low precision")
        check_declared(self.attack, type(self.attack).__name__)
        if self.precision == "bf16" and not isinstance(self.attack, Descent | Auto):
            raise InputError(
                f"precision='bf16' needs an attack with steps and a ball, "
                f"got {type(self.attack).__name__}: use precision='float32'"
            )

    uses_labels = property(takes_true_labels)

    @property
    def aim(self) -> Aim:
        """As the attack."""
        return aim_of(self.attack)

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images; the model is prepared for this call alone."""
        return Ready(self)(model, x, y, generator=generator)

    @contextmanager
    def ready(self) -> Iterator[Ready]:
        """An attack that keeps what it prepares, for each shape of batch, while the context lasts.

        >>> from poise.attacks import pgd
        >>> with Fast(attack=pgd()).ready() as attack:
        ...     attack.preparations
        0
        """
        kept = Ready(self)
        try:
            yield kept
        finally:
            kept.prepared.clear()


@dataclass(eq=False)
class Ready:
    """A `Fast` attack with the copies it has prepared; it prepares anew when the model has changed."""

    fast: Fast
    prepared: dict[torch.Size, Prepared] = field(default_factory=dict)
    preparations: int = 0

    uses_labels = property(takes_true_labels)

    @property
    def aim(self) -> Aim:
        """As the attack."""
        return self.fast.aim

    @property
    def notes(self) -> tuple[str, ...]:
        """What was tried and left out, one sentence each."""
        return tuple(dict.fromkeys(note for each in self.prepared.values() for note in each.notes))

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images; arguments and refusals are those of `Descent`."""
        center, y = accepted(x, y)
        if len(x) == 0:
            return center
        logits = judged(model, center, y)
        top = logits.argmax(dim=1)
        nets = self._nets(model, center, logits)
        x_adv = _walk(self.fast, nets, center, top if y is None else y, generator)
        label = top if y is None or self.aim.labels == "true" else y
        return _checked(model, self.fast.attack, center, x_adv, logits, label)

    def _nets(self, model: Model, x: Images, logits: Logits) -> Prepared:
        known = self.prepared.get(x.shape)
        if known is None or not known.fits(model):
            known = prepare(model, x, logits, low=self.fast.precision == "bf16")
            self.prepared[x.shape] = known
            self.preparations += 1
        return known


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
        return replace(self, ball=held(self.ball, self.origin))

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


def accelerated(attack: Attack, *, precision: Precision = "float32") -> Fast:
    """The attack on its fast path; in float32 where it is not one that takes "bf16".

    >>> from poise.attacks import confsmooth, deepfool
    >>> [accelerated(attack, precision="bf16").precision for attack in (confsmooth(), deepfool())]
    ['bf16', 'float32']
    """
    return Fast(attack=attack, precision=precision if isinstance(attack, Descent | Auto) else "float32")


def _walk(
    fast: Fast, nets: Prepared, center: Images, y: Labels, generator: torch.Generator | None
) -> Images:
    """The attack on the prepared copies: in one precision, or in two legs."""
    attack = fast.attack
    if nets.low is None or not isinstance(attack, Descent | Auto):
        return attack(nets.full, center, y, generator=generator)
    early = round(fast.share * attack.steps)
    if isinstance(attack, Auto):
        return attack(Switching(nets.low, nets.full, early), center, y, generator=generator)
    rule = Watched(attack.rule, torch.full_like(center.flatten(1)[:, 0], attack.step))
    x_adv = replace(attack, steps=early, rule=rule)(nets.low, center, y, generator=generator)
    if not _roams(attack):
        x_adv = _checked(nets.full, attack, center, x_adv, None, y)
    ball = Around(attack.ball, center, rule.size / (attack.step or 1))
    onward = replace(attack, steps=attack.steps - early, ball=ball, random_start=False)
    return onward(nets.full, x_adv, y, generator=generator)


def _checked(
    model: Model, attack: Attack, center: Images, x_adv: Images, clean: Logits | None, y: Labels
) -> Images:
    """The attacked images where they hold on this model, else the farthest point from x found that does.

    An attack that keeps no label has nothing to hold: only finite logits are asked of it.
    """
    if _roams(attack):
        rejudged(model, x_adv)
        return x_adv
    goal = _goal(attack)

    def holds(at: Images, chosen: Mask | slice) -> Mask:
        logits = rejudged(model, at)
        kept = holds_label(logits, y[chosen], MARGIN, units=UNITS // 2)
        if goal is not None and clean is not None:
            kept &= goal(logits, y[chosen]) <= goal(clean[chosen], y[chosen])
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


def _roams(attack: Attack) -> bool:
    """Whether the attack may return points of another label: the check must not undo that."""
    return not aim_of(attack).keeps_label


def _goal(attack: Attack) -> Callable[..., torch.Tensor] | None:
    """What the attack lowers in the end, if it is one number for every image alike."""
    wants: dict[str, Objective] = {"lower": Confidence(), "higher": Negative(Confidence())}
    return wants.get(aim_of(attack).wants)

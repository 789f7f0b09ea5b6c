"""Diagnostics of an attack on probe images: gradients that vanish, step sizes that die."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from poise.attacks import Attack, aim_of, run
from poise.attacks.aim import DECLARE
from poise.attacks.common import clean_logits
from poise.checks import check_images, check_number
from poise.diagnostics.finding import LEAST, Finding, above_least, of_images
from poise.diagnostics.heading import SURE, gradient_free, heading
from poise.objectives import lead
from poise.rules import Backtrack, StepBack, StepRule
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, Point

DEAD = 1e-3  # a step size below this share of the first has died: ten halvings


def attack_findings(
    model: Model,
    attack: Attack,
    x: Images,
    y: Labels | None = None,
    *,
    name: str = "",
    least: float = LEAST,
) -> tuple[Finding, ...]:
    """Whether the attack's gradients vanish or its step sizes die on these images, or it declares no aim.

    The attack runs once, watched, and the model is asked once more. A gradient counts as vanished
    where it is so small, in all that the attack got for an image, that a change of every pixel by 1
    would change the objective by less than rounding. A step size counts as dead below a thousandth
    of the first, where the walk came less than half of the way to the decision boundary: a size that
    shrinks at the boundary is at its end. Walks of fewer than ten steps cannot show it, and members
    of `worst_case` are best looked at one by one. Black-box attacks have neither and are not run.

    Args:
        model: images in [0, 1] -> logits, on the device of x.
        attack: any attack.
        x: probe images (n, c, h, w).
        y: true labels (n,), for the attacks that use them.
        name: what the findings call the attack.
        least: the share of images from which on there is a finding.

    Raises:
        InputError: what the attack refuses.

    >>> from poise.attacks import adaptive
    >>> steep = lambda x: 1e6 * x.flatten(1)
    >>> x = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1)
    >>> [finding.kind for finding in attack_findings(steep, adaptive(), x)]
    ['vanished-gradient']
    """
    check_images(x)
    check_number("least", least, 0, 1, hint="it is a share of images")
    if len(x) == 0:
        return ()
    silent = torch.full((len(x),), aim_of(attack).wants == "unknown")
    told = of_images(
        "undeclared-aim",
        name,
        silent,
        "of the images are attacked by something that does not say where it wants the confidence to go, "
        "so nothing is said of whether it got there",
        f"Declare it: {DECLARE}; an objective of your own in a Descent says it by `wants`.",
    )
    if gradient_free(attack):
        return above_least([told], least)
    clean = clean_logits(model, x, y).softmax(dim=1)
    prediction = clean.argmax(dim=1)
    right = torch.ones_like(prediction, dtype=torch.bool) if y is None else prediction == y.to(x.device)
    watched, paces = Watched(model, len(x)), list[Pace]()
    run(_pace(attack, paces), watched, x, y)
    wanted = heading(attack, clean, right)
    # Where nothing is left to do, a gradient may be 0: answers wrong already, confidence at its top.
    sated = ~right if wanted is None else (wanted > 0) & (clean.amax(dim=1) >= SURE)
    vanished = torch.zeros_like(right) if watched.flat is None else watched.flat & ~sated
    dead = torch.zeros_like(right)
    for pace in (pace for pace in paces if pace.first is not None):
        dead |= pace.dead() & ~vanished
    return above_least(
        [
            told,
            of_images(
                "vanished-gradient",
                name,
                vanished,
                "of the images gave the attack no gradient that the precision can tell from 0",
                "Use auto or confsmooth, whose gradients do not vanish where the softmax saturates, or "
                "attack the model in float64 or with its logits divided by a constant.",
            ),
            of_images(
                "dead-step-size",
                name,
                dead,
                "of the images lost the label at every size of step until the size was a thousandth of "
                "the first, far from the end of their way",
                "Use auto or pgd_bisect, which walk across the boundary: these images stand where they "
                "are because of the step rule, not because they are robust.",
            ),
        ],
        least,
    )


class Watched(nn.Module):
    """A model that notes for which images no gradient that went back to them can be told from 0."""

    def __init__(self, model: Model, images: int) -> None:
        super().__init__()
        self.model, self.images = model, images
        self.flat: Mask | None = None  # (n,), None until a gradient of the whole batch was asked for

    def forward(self, x: Images) -> Logits:
        """The model's logits."""
        if x.requires_grad and len(x) == self.images:
            x = x.view_as(x)
            x.register_hook(self._see)
        return self.model(x)

    def _see(self, grad: Tensor) -> None:
        dtype = torch.promote_types(grad.dtype, torch.float32)
        flat = grad.flatten(1).to(dtype).abs().sum(dim=1) < torch.finfo(dtype).eps / 2
        self.flat = flat if self.flat is None else self.flat & flat


class Pace:
    """A step rule that remembers the first and the last step."""

    def __init__(self, rule: StepRule) -> None:
        self.rule = rule
        self.first: Point | None = None

    def __call__(self, at: Point, new: Point, size: PerSample) -> tuple[Mask, PerSample]:
        kept, following = self.rule(at, new, size)
        before = lead(at.logits, at.y)
        if self.first is None:
            self.first, self.begin, self.lead = at, size, before
        self.size, self.loss = following, torch.where(kept, new.loss, at.loss)
        self.left = torch.where(kept, lead(new.logits, new.y), before)
        return kept, following

    def dead(self) -> Mask:
        """Whether the size has died (n,), with too little of the way gone."""
        assert self.first is not None
        short = self.loss >= self.first.loss
        if isinstance(self.rule, StepBack):  # it shrinks nowhere but where the label is lost
            short |= self.left > self.lead / 2
        return (self.size < DEAD * self.begin) & short


def _pace(attack: Any, paces: list[Pace]) -> Any:
    """The attack with a Pace for every rule in it that can shrink its steps; `paces` gets them."""
    if isinstance(attack, StepBack | Backtrack):
        paces.append(Pace(attack))
        return paces[-1]
    if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
        return attack
    parts = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack) if f.init}
    paced = {name: _pace(part, paces) for name, part in parts.items()}
    changed = {name: part for name, part in paced.items() if part is not parts[name]}
    return dataclasses.replace(attack, **changed) if changed else attack

"""What an attack is for, declared by the attack itself: nobody has to guess it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from poise.checks import InputError, check_choice, settle
from poise.objectives import WANTS, Wants
from poise.shapes import Images, Labels, Model

DECLARE = (
    "aim = poise.attacks.Aim(labels='prediction' or 'true', keeps_label=True or False, "
    f"wants={' or '.join(map(repr, WANTS[:-1]))})"
)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Which labels an attack takes, whether it keeps the label, and where it wants the confidence to go.

    Args:
        labels: "true": y are the true labels; "prediction": y may be left out, and is what the model
            says at x, which the attack keeps or walks away from.
        keeps_label: whether every image that it returns still has the model's answer at x.
        wants: of the confidence in that answer: "lower", "higher", "apart" (right answers lower, wrong
            ones higher) or "target"; "mislabel" where the attack is for the label, not the confidence;
            "unknown" where nothing is said of it.
        target: the confidence that "target" is for, None where each image has its own.
        nearest: it looks for the nearest point, without a budget unless it is given one.

    >>> from poise import attacks
    >>> attacks.overconfidence().aim.wants, attacks.pgd().aim.labels
    ('higher', 'true')
    """

    labels: Literal["prediction", "true"]
    keeps_label: bool
    wants: Wants
    target: float | None = None
    nearest: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_choice("labels", self.labels, ("prediction", "true"))
        check_choice("wants", self.wants, WANTS)


class Attack(Protocol):
    """A frozen value that turns images into attacked images."""

    @property
    def aim(self) -> Aim:
        """What it is for."""
        ...

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images."""
        ...


def aim_of(attack: object) -> Aim:
    """What the attack declares; where it declares nothing, nothing is guessed: it wants "unknown".

    Raises:
        InputError: its `aim` is no Aim.

    >>> aim_of(lambda model, x, y=None, *, generator=None: x).wants
    'unknown'
    """
    match attack:
        case object(aim=Aim() as aim):
            return aim
        case object(aim=other):
            raise InputError(
                f"the aim of {type(attack).__name__} is a {type(other).__name__}: declare {DECLARE}"
            )
        case object(uses_labels=True):  # what was declared before there was an Aim
            return Aim(labels="true", keeps_label=False, wants="unknown")
        case _:
            return Aim(labels="prediction", keeps_label=False, wants="unknown")


def check_declared(attack: object, who: str) -> None:
    """Refuse an attack that does not say what it is for, where that has to be known."""
    if not isinstance(getattr(attack, "aim", None), Aim):
        raise InputError(f"{who} does not say what it is for: give it {DECLARE}")


def run(
    attack: Attack,
    model: Model,
    x: Images,
    y: Labels | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Images:
    """The attacked images; the true labels y (n,) go only to an attack that takes them."""
    labels = y if aim_of(attack).labels == "true" else None
    return attack(model, x, labels, generator=generator)


def takes_true_labels(attack: Any) -> bool:
    """Whether y stands for the true label: `uses_labels`, as it was before attacks had an `aim`."""
    return aim_of(attack).labels == "true"

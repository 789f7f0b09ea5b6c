"""poise's attacks in the call shapes of torchattacks, adv-lib and foolbox; none of the three is needed.

Every attack of `poise.attacks.ATTACKS` is there. Labels are the true ones, as users of those packages
hand them in: an attack against the true label (its `aim` says so) gets them, and one that keeps the label
keeps the model's own prediction, as in `poise.evaluate`. Keeping the true label of an image that the
model has wrong would be another attack.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch

from poise import attacks
from poise.attacks import Attack
from poise.checks import InputError, check_choice, check_labels
from poise.shapes import Images, Labels, Model


def make(name: str, options: Mapping[str, Any]) -> Attack:
    """The attack of that name with these options; one that it does not take is refused, not left out.

    >>> make("fgsm", {"eps": 0.1}).step
    0.1

    Raises:
        InputError: an option that the attack does not take, or a value out of its bounds.
    """
    factory = attacks.factory(name)
    for option in options:
        check_choice(f"an option of {name}", option, signature(factory).parameters)
    return factory(**options)


def run(
    attack: Attack, model: Model, x: Images, y: Labels | None, *, generator: torch.Generator | None = None
) -> Images:
    """The attacked images; the true labels y (n,) go only to an attack against them.

    Raises:
        InputError: y that are no labels, even where they are not used, or what the attack refuses.
    """
    if y is not None:
        check_labels(y, len(x))
    return attacks.run(attack, model, x, y, generator=generator)


def no_such_attack(module: str, name: str, names: Mapping[str, str]) -> AttributeError:
    """The error of a module that has no attack of that name."""
    return AttributeError(f"module {module!r} has no attack {name!r} (known: {', '.join(names)})")


def refuse_targeted(targeted: object) -> None:
    """Refuse the targeted mode, which none of poise's attacks has."""
    if targeted:
        raise InputError(
            "targeted must be False: poise's attacks aim away from a label or keep it, never at a chosen "
            "class; use the other package's own targeted attack"
        )

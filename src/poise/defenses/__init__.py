"""Defenses: frozen values, `defense(model, x, y, generator) -> loss`. A new one is a file and a line."""

from collections.abc import Callable, Mapping
from typing import Any

from poise import naming
from poise.defenses.adversarial import (
    AdversarialTraining,
    Defense,
    adversarial_training,
    uat_gap,
    uat_smooth,
)
from poise.defenses.vanilla import Vanilla, vanilla

DEFENSES: Mapping[str, Callable[..., Defense]] = {
    "vanilla": vanilla,
    "at": adversarial_training,
    "uat-gap": uat_gap,
    "uat-smooth": uat_smooth,
}


def build(name: str, **options: Any) -> Defense:
    """The defense of that name, given those of the options that it takes and that are not None.

    >>> build("vanilla", eps=0.1)
    Vanilla()
    """
    return naming.build(DEFENSES, name, "defense", options)


__all__ = [
    "DEFENSES",
    "AdversarialTraining",
    "Defense",
    "Vanilla",
    "adversarial_training",
    "build",
    "uat_gap",
    "uat_smooth",
    "vanilla",
]

"""Attacks: frozen values, `attack(model, x) -> x_adv`. A new one is a file and a line here."""

from collections.abc import Callable, Mapping
from typing import Any

from poise import naming
from poise.attacks.adaptive import adaptive
from poise.attacks.confsmooth import confsmooth
from poise.attacks.descent import Attack, Descent
from poise.attacks.dropout import dropout
from poise.attacks.fgsm import fgsm
from poise.attacks.pgd import pgd

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "dropout": dropout,
    "adaptive": adaptive,
    "confsmooth": confsmooth,
}


def build(name: str, **options: Any) -> Attack:
    """The attack of that name, given those of the options that it takes and that are not None.

    >>> build("fgsm", eps=0.1, steps=20) == fgsm(eps=0.1)
    True
    """
    return naming.build(ATTACKS, name, "attack", options)


__all__ = ["ATTACKS", "Attack", "Descent", "adaptive", "build", "confsmooth", "dropout", "fgsm", "pgd"]

"""Attacks: frozen values, `attack(model, x) -> x_adv`. A new one is a file and a line here."""

from collections.abc import Callable, Mapping
from typing import Any

from poise import naming
from poise.attacks.ace import ace
from poise.attacks.adaptive import adaptive
from poise.attacks.aim import Aim, Attack, aim_of, check_declared, run
from poise.attacks.apgd import apgd_ce, apgd_dlr
from poise.attacks.auto import auto
from poise.attacks.calibration import (
    max_miscalibration,
    overconfidence,
    random_confidence,
    target_confidence,
)
from poise.attacks.carlini import cw
from poise.attacks.confsmooth import confsmooth
from poise.attacks.deepfool import deepfool
from poise.attacks.descent import Descent
from poise.attacks.dropout import dropout, dropout_accumulated, dropout_cited, dropout_rescaled
from poise.attacks.fgsm import fgsm
from poise.attacks.noise import noise
from poise.attacks.pgd import pgd
from poise.attacks.pgd_bisect import pgd_bisect
from poise.attacks.square import square
from poise.attacks.square_confidence import (
    square_max_miscalibration,
    square_overconfidence,
    square_random_confidence,
    square_underconfidence,
)
from poise.attacks.worst_case import worst_case
from poise.user_code import UserFactory, is_own

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "dropout": dropout,
    "adaptive": adaptive,
    "confsmooth": confsmooth,
    "auto": auto,
    "pgd_bisect": pgd_bisect,
    "overconfidence": overconfidence,
    "max_miscalibration": max_miscalibration,
    "random_confidence": random_confidence,
    "target_confidence": target_confidence,
    "ace": ace,
    "cw": cw,
    "deepfool": deepfool,
    "square": square,
    "square_underconfidence": square_underconfidence,
    "square_overconfidence": square_overconfidence,
    "square_max_miscalibration": square_max_miscalibration,
    "square_random_confidence": square_random_confidence,
    "noise": noise,
}
READINGS: Mapping[str, Callable[..., Attack]] = {  # other readings of the paper
    "dropout_accumulated": dropout_accumulated,
    "dropout_rescaled": dropout_rescaled,
    "dropout_cited": dropout_cited,
}


def factory(name: str) -> Callable[..., Attack]:
    """What makes the attack of that name, FILE.py:NAME or what a package offers, of its options.

    >>> factory("PGD") is pgd
    True
    """
    known = {**ATTACKS, **READINGS}
    if is_own(name, "attacks", known):
        return UserFactory(name, "attacks", check=check_declared)
    return naming.lookup(known, name, "attack")


def build(name: str, **options: Any) -> Attack:
    """The attack of that name (`factory`) with these options; None leaves one at its default.

    Raises:
        InputError: an unknown name, or an option that this attack does not take.

    >>> build("FGSM", eps=0.1, norm=None) == fgsm(eps=0.1)
    True
    """
    return naming.build({name: factory(name)}, name, "attack", options)


def seeks_nearest(name: str) -> bool:
    """Whether the attack looks for the nearest point, without a budget unless it is given one.

    >>> [name for name in ATTACKS if seeks_nearest(name)]
    ['cw', 'deepfool']
    """
    return build(name).aim.nearest


__all__ = [
    "ATTACKS",
    "READINGS",
    "Aim",
    "Attack",
    "Descent",
    "ace",
    "adaptive",
    "aim_of",
    "apgd_ce",
    "apgd_dlr",
    "auto",
    "build",
    "confsmooth",
    "cw",
    "deepfool",
    "dropout",
    "dropout_accumulated",
    "dropout_cited",
    "dropout_rescaled",
    "factory",
    "fgsm",
    "max_miscalibration",
    "noise",
    "overconfidence",
    "pgd",
    "pgd_bisect",
    "random_confidence",
    "run",
    "seeks_nearest",
    "square",
    "square_max_miscalibration",
    "square_overconfidence",
    "square_random_confidence",
    "square_underconfidence",
    "target_confidence",
    "worst_case",
]

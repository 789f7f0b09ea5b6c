"""Defenses: frozen values, `defense(model, x, y, generator) -> loss`. A new one is a file and a line."""

from collections.abc import Callable, Mapping
from typing import Any

from poise import naming
from poise.defenses.adversarial import (
    AdversarialTraining,
    Defense,
    adversarial_training,
    uat_gap,
    uat_gap_unprojected,
    uat_smooth,
    uat_smooth_unprojected,
)
from poise.defenses.caat import caat, caat_accumulated, caat_cited, caat_rescaled
from poise.defenses.ccat import ccat
from poise.defenses.common import check_callable
from poise.defenses.dca import dca
from poise.defenses.falcon import falcon
from poise.defenses.ibp import ibp
from poise.defenses.label_smoothing import label_smoothing
from poise.defenses.mixup import mixup
from poise.defenses.robust_augmix import robust_augmix
from poise.defenses.sam import sam
from poise.defenses.trades import trades
from poise.defenses.uat_mix import uat_mix
from poise.defenses.vanilla import Vanilla, vanilla
from poise.user_code import UserFactory, is_own

DEFENSES: Mapping[str, Callable[..., Defense]] = {
    "vanilla": vanilla,
    "at": adversarial_training,
    "trades": trades,
    "robust-augmix": robust_augmix,
    "ccat": ccat,
    "caat": caat,
    "uat-gap": uat_gap,
    "uat-smooth": uat_smooth,
    "uat-mix": uat_mix,
    "label-smoothing": label_smoothing,
    "mixup": mixup,
    "sam": sam,
    "falcon": falcon,
    "dca": dca,
    "ibp": ibp,
}
READINGS: Mapping[str, Callable[..., Defense]] = {  # other readings of the paper
    "uat-gap-unprojected": uat_gap_unprojected,
    "uat-smooth-unprojected": uat_smooth_unprojected,
    "caat-accumulated": caat_accumulated,
    "caat-rescaled": caat_rescaled,
    "caat-cited": caat_cited,
}


def factory(name: str) -> Callable[..., Defense]:
    """What makes the defense of that name, FILE.py:NAME or what a package offers, of its options.

    >>> factory("AT") is adversarial_training
    True
    """
    known = {**DEFENSES, **READINGS}
    if is_own(name, "defenses", known):
        return UserFactory(name, "defenses", check=check_callable)
    return naming.lookup(known, name, "defense")


def build(name: str, **options: Any) -> Defense:
    """The defense of that name (`factory`) with these options; None leaves one at its default.

    Raises:
        InputError: an unknown name, or an option that this defense does not take.

    >>> build("Vanilla", eps=None)
    Vanilla()
    """
    return naming.build({name: factory(name)}, name, "defense", options)


__all__ = [
    "DEFENSES",
    "READINGS",
    "AdversarialTraining",
    "Defense",
    "Vanilla",
    "adversarial_training",
    "build",
    "caat",
    "caat_accumulated",
    "caat_cited",
    "caat_rescaled",
    "ccat",
    "dca",
    "factory",
    "falcon",
    "ibp",
    "label_smoothing",
    "mixup",
    "robust_augmix",
    "sam",
    "trades",
    "uat_gap",
    "uat_gap_unprojected",
    "uat_mix",
    "uat_smooth",
    "uat_smooth_unprojected",
    "vanilla",
]

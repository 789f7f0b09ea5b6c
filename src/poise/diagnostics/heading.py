"""What an attack is for: which way it wants the confidence to go, and with what it works."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poise.attacks import Attack, Descent
from poise.attacks.ace import Ace
from poise.attacks.calibration import MaxMiscalibration, RandomConfidence
from poise.attacks.square import Search, lead
from poise.attacks.square_confidence import (
    LowerConfidence,
    Miscalibrate,
    RaiseConfidence,
    ReachConfidence,
)
from poise.objectives import Distance, Negative
from poise.shapes import Mask, PerSample, Probabilities

NEAR, SURE, AIMED = 0.1, 0.99, 0.01  # lead in logits, confidence and distance with no room for more


def gradient_free(attack: Attack) -> bool:
    """Whether the attack is black-box: it counts queries, not gradients.

    >>> from poise.attacks import auto, square
    >>> gradient_free(square()), gradient_free(auto())
    (True, False)
    """
    return hasattr(attack, "queries")


def heading(attack: Attack, clean: Probabilities, right: Mask) -> PerSample | None:
    """Where the attack wants the confidence of each image: 1 up, -1 down, 0 as it is; NaN not known.

    None for misclassification attacks. An attack from elsewhere is taken to lower the confidence,
    unless it uses labels.

    >>> from poise.attacks import ace, pgd
    >>> clean, right = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([True, False])
    >>> heading(ace(), clean, right), heading(pgd(), clean, right)
    (tensor([-1.,  1.]), None)
    """
    confidence = clean.amax(dim=1)
    up = torch.ones_like(confidence)
    match attack:
        case RandomConfidence() | Search(aim=ReachConfidence()):
            return up * torch.nan
        case MaxMiscalibration() | Ace() | Search(aim=Miscalibrate()):
            return torch.where(right, -up, up)
        case Search(aim=RaiseConfidence()) | Descent(goal=Negative(), uses_labels=False):
            return up
        case Search(aim=LowerConfidence()):
            return -up
        case Descent(goal=Distance(target=Tensor())):
            return up * torch.nan
        case Descent(goal=Distance(target=target)):
            away = target - confidence
            return away.sign().where(away.abs() > AIMED, 0)
        case _:
            return None if getattr(attack, "uses_labels", False) else -up


def room(clean: Probabilities, wanted: PerSample) -> Mask:
    """Whether the confidence can still go where the attack wants it; also where that is not known."""
    z = clean.clamp_min(1e-30).log()
    falls = lead(z, clean.argmax(dim=1)) > NEAR
    rises = clean.amax(dim=1) < SURE
    return torch.where(wanted > 0, rises, torch.where(wanted < 0, falls, wanted.isnan()))


def ball(attack: Any) -> Any:
    """The ball that the attack stays in, looked up where each kind of attack has it; None not known."""
    for inside in ("moves", "descent", "under", "pgd"):
        attack = getattr(attack, inside, attack)
    found = getattr(attack, "ball", None)
    return getattr(found, "ball", found)  # dropout's mask is around it

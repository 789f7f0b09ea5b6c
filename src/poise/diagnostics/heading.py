"""What an attack is for: which way it wants the confidence to go, and with what it works."""

from __future__ import annotations

from typing import Any

import torch

from poise.attacks import Attack, aim_of
from poise.objectives import lead
from poise.shapes import Mask, PerSample, Probabilities

NEAR, SURE, AIMED = 0.1, 0.99, 0.01  # lead in logits, confidence and distance with no room for more


def gradient_free(attack: Attack) -> bool:
    """Whether the attack is black-box: it counts queries or tries, not gradients.

    >>> from poise.attacks import auto, square
    >>> gradient_free(square()), gradient_free(auto())
    (True, False)
    """
    return hasattr(attack, "queries") or hasattr(attack, "tries")


def heading(attack: Attack, clean: Probabilities, right: Mask) -> PerSample | None:
    """Where the attack wants the confidence of each image: 1 up, -1 down, 0 as it is; NaN not known.

    None for misclassification attacks. Read from the attack's `aim`: what says nothing of itself has
    NaN, for nothing is guessed.

    >>> from poise.attacks import ace, pgd
    >>> clean, right = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([True, False])
    >>> heading(ace(), clean, right), heading(pgd(), clean, right)
    (tensor([-1.,  1.]), None)
    """
    confidence = clean.amax(dim=1)
    up = torch.ones_like(confidence)
    aim = aim_of(attack)
    match aim.wants:
        case "mislabel":
            return None
        case "lower":
            return -up
        case "higher":
            return up
        case "apart":
            return torch.where(right, -up, up)
        case "target" if aim.target is not None:
            away = aim.target - confidence
            return away.sign().where(away.abs() > AIMED, 0)
        case _:
            return up * torch.nan


def room(clean: Probabilities, wanted: PerSample) -> Mask:
    """Whether the confidence can still go where the attack wants it; also where that is not known."""
    z = clean.clamp_min(1e-30).log()
    falls = lead(z, clean.argmax(dim=1)) > NEAR
    rises = clean.amax(dim=1) < SURE
    return torch.where(wanted > 0, rises, torch.where(wanted < 0, falls, wanted.isnan()))


def ball(attack: Any) -> Any:
    """The ball that the attack stays in, as it says itself; None not known."""
    found = getattr(attack, "ball", None)
    return getattr(found, "ball", found)  # dropout's mask is around it

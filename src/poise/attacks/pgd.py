"""Projected gradient descent (Madry et al. 2018)."""

from poise.attacks.descent import Descent, Keep
from poise.attacks.worst_case import Restarts
from poise.objectives import NegativeCrossEntropy
from poise.rules import Always
from poise.threat import ball, first_step


def pgd(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep: Keep = "last",
    norm: str = "linf",
    random_start: bool = False,
    restarts: int = 1,
) -> Descent | Restarts:
    """The misclassification attack: up the cross-entropy of the label (Madry et al. 2018).

    With several `restarts`, each from a random start of its own, an image gets the worst of its own.

    >>> pgd(eps=8/255, random_start=True).random_start
    True
    """
    attack = descent(eps=eps, step=step, steps=steps, keep=keep, norm=norm, random_start=random_start)
    return attack if restarts == 1 else Restarts(attack, restarts)


def descent(
    *, eps: float, step: float | None, steps: int, keep: Keep, norm: str, random_start: bool
) -> Descent:
    """PGD without restarts."""
    return Descent(
        objective=NegativeCrossEntropy(),
        rule=Always(),
        ball=ball(norm, eps),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep=keep,
        random_start=random_start,
        uses_labels=True,
    )

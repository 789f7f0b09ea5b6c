"""Projected gradient descent (Madry et al. 2018)."""

from poise.attacks.descent import Descent, Keep
from poise.objectives import NegativeCrossEntropy
from poise.rules import Always
from poise.threat import ball


def pgd(
    *,
    eps: float = 0.03,
    step: float = 5 / 255,
    steps: int = 20,
    keep: Keep = "last",
    norm: str = "linf",
    random_start: bool = False,
) -> Descent:
    """The misclassification attack: up the cross-entropy of the label (Madry et al. 2018).

    >>> pgd(eps=8/255, random_start=True).random_start
    True
    """
    return Descent(
        objective=NegativeCrossEntropy(),
        rule=Always(),
        ball=ball(norm, eps),
        step=step,
        steps=steps,
        keep=keep,
        random_start=random_start,
        uses_labels=True,
    )

"""Fast gradient sign method (Goodfellow et al. 2014)."""

from poise.attacks.descent import Descent
from poise.objectives import NegativeCrossEntropy
from poise.rules import Always
from poise.threat import ball


def fgsm(*, eps: float = 0.03, norm: str = "linf") -> Descent:
    """One step of size eps up the cross-entropy of the label (Goodfellow et al. 2014).

    >>> fgsm(eps=0.1).steps
    1
    """
    return Descent(
        objective=NegativeCrossEntropy(),
        rule=Always(),
        ball=ball(norm, eps),
        step=eps,
        steps=1,
        uses_labels=True,
    )

"""The ConfSmooth attack: label-smoothed cross-entropy toward the uniform (section 3.3)."""

from poise.attacks.descent import Descent, Keep, margin_for
from poise.objectives import Confidence, SmoothedCrossEntropy
from poise.rules import Accept, step_back
from poise.threat import ball, first_step


def confsmooth(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    smoothing: float = 0.98,
    grow: float = 1.1,
    margin: float | None = None,
    keep: Keep = "best",
    accept: Accept = "label",
    norm: str = "linf",
) -> Descent:
    """Spread the confidence over all classes without losing the label (the paper's eqs. 4-7).

    accept and keep: as in `adaptive`.
    """
    return Descent(
        objective=SmoothedCrossEntropy(smoothing),  # eq. 7
        rule=step_back(grow, margin_for(keep, margin), accept),  # eqs. 5-6
        ball=ball(norm, eps),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep=keep,
        goal=Confidence(),
    )

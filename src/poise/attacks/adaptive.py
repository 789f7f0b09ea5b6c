"""The Adaptive attack: the top-two gap with a step-back step size (sections 3.1-3.2)."""

from poise.attacks.descent import Descent, Keep, margin_for
from poise.objectives import Confidence, Gap
from poise.rules import Accept, step_back
from poise.threat import ball, first_step


def adaptive(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    grow: float = 1.1,
    margin: float | None = None,
    keep: Keep = "best",
    accept: Accept = "label",
    norm: str = "linf",
) -> Descent:
    """Close the gap of the top two probabilities without crossing it (the paper's eqs. 1, 4-6).

    accept="label" keeps every step that keeps the label (eq. 6); accept="improving" is the listing of
    Algorithm 1, which keeps only those that lower the loss as well. keep="last" returns the last point,
    with margin 0; keep="best" costs no more, is never worse, and keeps a margin of 1e-4 so that the
    label survives another batch size.

    >>> adaptive(eps=0.1).objective
    Gap()
    """
    return Descent(
        objective=Gap(),  # eq. 1
        rule=step_back(grow, margin_for(keep, margin), accept),  # eqs. 5-6
        ball=ball(norm, eps),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep=keep,
        goal=Confidence(),
    )

"""The underconfidence attack with dropout on its perturbation (Obadinma et al. 2024; eqs. 1-3).

The paper does not say what is dropped. 'A dropout factor of 95 %' and 'p, the fraction retained' make p =
.05, and the attack is said to cause no misclassification; the default here is the reading under which both
hold and a net that was not defended comes near a tie. The others stand beside it by name.
"""

from typing import Literal, TypeAlias

from poise.attacks.descent import Descent, Keep
from poise.checks import check_choice
from poise.objectives import MARGIN, Confidence, Gap, NegativeCrossEntropy
from poise.rules import Always, KeepPrediction, StepBack, StepRule
from poise.threat import Ball, Masked, Sparse, ball, first_step

Accept: TypeAlias = Literal["label", "always"]


def dropout(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.05,
    accept: Accept = "label",
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Close the gap of the top two, dropping 95 % of each step's change (Obadinma et al. 2024; eqs. 1-3).

    Where a step would change the label, the previous point is kept and its pixels are drawn anew
    (accept="label"); accept="always" lets the label go.

    >>> dropout(eps=0.1).ball
    Sparse(ball=Linf(eps=0.1), keep_fraction=0.05)
    """
    inside = Sparse(ball(norm, eps), keep_fraction)
    return _descent(inside, accept, first_step(norm, eps, step, steps), steps, keep)


def dropout_accumulated(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.05,
    accept: Accept = "always",
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Dropout by eqs. 2-3 literally: each step drops from the whole of δ (Obadinma et al. 2024).

    With keep_fraction=0.95 it was the default here before: it loses nearly every label of a net that was
    not defended.

    >>> dropout_accumulated(eps=0.1, keep_fraction=0.5).ball
    Masked(ball=Linf(eps=0.1), keep_fraction=0.5, rescale=False)
    """
    inside = Masked(ball(norm, eps), keep_fraction)
    return _descent(inside, accept, first_step(norm, eps, step, steps), steps, keep)


def dropout_rescaled(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.05,
    accept: Accept = "always",
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Dropout as `F.dropout` scales it: survivors grow by 1/p and leave the ball (Obadinma et al. 2024).

    Max |δ| reaches eps / keep_fraction, 20·eps by default. It breaks its budget and is here to compare
    published numbers with.

    >>> dropout_rescaled(eps=0.01).ball
    Masked(ball=Linf(eps=0.01), keep_fraction=0.05, rescale=True)
    """
    inside = Masked(ball(norm, eps), keep_fraction, rescale=True)
    return _descent(inside, accept, first_step(norm, eps, step, steps), steps, keep)


def dropout_cited(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.05,
    norm: str = "linf",
) -> Descent:
    """Dropout as the cited work's code runs it: up the true label's cross-entropy (Obadinma et al. 2024).

    Rescaled, so it breaks its budget; a step that changes the prediction is taken back; the last
    point is returned. For misclassified images the direction is not that of the stated aim.

    >>> dropout_cited().aim.labels
    'true'
    """
    return Descent(
        objective=NegativeCrossEntropy(),
        rule=KeepPrediction(),
        ball=Masked(ball(norm, eps), keep_fraction, rescale=True),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        uses_labels=True,
    )


def _descent(inside: Ball, accept: Accept, step: float, steps: int, keep: Keep) -> Descent:
    check_choice("accept", accept, ("label", "always"))
    rule: StepRule = StepBack(shrink=1.0, grow=1.0, margin=MARGIN) if accept == "label" else Always()
    return Descent(
        objective=Gap(), rule=rule, ball=inside, step=step, steps=steps, keep=keep, goal=Confidence()
    )

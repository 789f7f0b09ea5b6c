"""The underconfidence attack with dropout on its perturbation (Obadinma et al. 2024; eqs. 1-3)."""

from dataclasses import replace

from poise.attacks.descent import Descent, Keep
from poise.objectives import Confidence, Gap, NegativeCrossEntropy
from poise.rules import Always, KeepPrediction
from poise.threat import Masked, ball, first_step


def dropout(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.95,
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Close the gap of the top two, dropping changes at random (Obadinma et al. 2024; eqs. 1-3).

    Nothing stops it at the decision boundary: with keep="last" the label may change. The paper's
    'dropout factor of 95 %' is read as eq. 2 defines p, the share kept.

    >>> dropout(eps=0.1, keep_fraction=0.5).ball
    Masked(ball=Linf(eps=0.1), keep_fraction=0.5, rescale=False)
    """
    return Descent(
        objective=Gap(),
        rule=Always(),
        ball=Masked(ball(norm, eps), keep_fraction),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        keep=keep,
        goal=Confidence(),
    )


def dropout_rescaled(
    *,
    eps: float = 0.03,
    step: float | None = None,
    steps: int = 20,
    keep_fraction: float = 0.05,
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Dropout as `F.dropout` scales it: survivors grow by 1/p and leave the ball (Obadinma et al. 2024).

    A reading of the paper's 'dropout factor of 95 %': max |δ| reaches eps / keep_fraction, 20·eps by
    default. It breaks its budget and is here to compare published numbers with.

    >>> dropout_rescaled(eps=0.01).ball
    Masked(ball=Linf(eps=0.01), keep_fraction=0.05, rescale=True)
    """
    attack = dropout(eps=eps, step=step, steps=steps, keep=keep, norm=norm)
    return replace(attack, ball=Masked(ball(norm, eps), keep_fraction, rescale=True))


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

    >>> dropout_cited().uses_labels
    True
    """
    return Descent(
        objective=NegativeCrossEntropy(),
        rule=KeepPrediction(),
        ball=Masked(ball(norm, eps), keep_fraction, rescale=True),
        step=first_step(norm, eps, step, steps),
        steps=steps,
        uses_labels=True,
    )

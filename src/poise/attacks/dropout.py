"""The underconfidence attack with dropout on its perturbation (Obadinma et al. 2024; eqs. 1-3)."""

from poise.attacks.descent import Descent, Keep
from poise.objectives import Confidence, Gap
from poise.rules import Always
from poise.threat import Masked, ball


def dropout(
    *,
    eps: float = 0.03,
    step: float = 5 / 255,
    steps: int = 20,
    keep_fraction: float = 0.95,
    rescale: bool = False,
    keep: Keep = "last",
    norm: str = "linf",
) -> Descent:
    """Close the gap of the top two, dropping changes at random (Obadinma et al. 2024; eqs. 1-3).

    Nothing stops it at the decision boundary: with keep="last" the label may change. The paper's
    'dropout factor of 95 %' is read as eq. 2 defines p, the share kept. With `rescale` the kept
    changes grow by 1 / keep_fraction and leave the ball, as in the cited work's code.

    >>> dropout(eps=0.1, keep_fraction=0.5).ball
    Masked(ball=Linf(eps=0.1), keep_fraction=0.5, rescale=False)
    """
    return Descent(
        objective=Gap(),
        rule=Always(),
        ball=Masked(ball(norm, eps), keep_fraction, rescale),
        step=step,
        steps=steps,
        keep=keep,
        goal=Confidence(),
    )

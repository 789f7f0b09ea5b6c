"""What a classifier answers, and how sure it says it is."""

import math

from poise.checks import InputError, check_probabilities
from poise.shapes import Labels, Probabilities


def accuracy(probs: Probabilities, y: Labels) -> float:
    """The share of rows whose largest entry is at y; NaN for no rows.

    >>> import torch
    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    check_probabilities(probs, y)
    return float((probs.argmax(dim=1) == y).double().mean())


def confidence(probs: Probabilities, y: Labels | None = None) -> float:
    """The mean maximum softmax probability, MSP (Hendrycks & Gimpel 2017; section 4.3).

    NaN for no rows. Labels play no part.

    >>> import torch
    >>> confidence(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    0.625
    """
    check_probabilities(probs, y)
    return float(probs.max(dim=1).values.double().mean()) if len(probs) else math.nan


def label_kept(clean: Probabilities, attacked: Probabilities) -> float:
    """The share of rows whose prediction is the same in both; NaN for no rows.

    >>> import torch
    >>> label_kept(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([[0.6, 0.4], [0.4, 0.6]]))
    0.5
    """
    check_probabilities(clean)
    check_probabilities(attacked)
    if clean.shape != attacked.shape:
        raise InputError(
            f"clean and attacked must have one shape, got {tuple(clean.shape)} and {tuple(attacked.shape)}"
        )
    return float((clean.argmax(dim=1) == attacked.argmax(dim=1)).double().mean())

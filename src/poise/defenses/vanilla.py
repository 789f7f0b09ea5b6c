"""Plain training."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise.defenses.common import forward
from poise.shapes import Images, Labels, Model, Scalar


@dataclass(frozen=True)
class Vanilla:
    """Mean cross-entropy of clean images."""

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        return F.cross_entropy(forward(model, x), y)


def vanilla() -> Vanilla:
    """No defense: cross-entropy of clean images.

    >>> vanilla()
    Vanilla()
    """
    return Vanilla()

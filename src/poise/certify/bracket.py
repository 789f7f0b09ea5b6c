"""The bracket: certified <= true <= attacked, checked wherever both sides are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.certify.certificate import Certificate
from poise.checks import InputError
from poise.objectives import lead
from poise.records import Records
from poise.shapes import Mask

SLACK = 1e-5  # of a probability, for the judge's forwards in float32
LENGTH = 1e-5  # of a radius, for lengths measured in float32


class UnsoundError(Exception):
    """What an attack found lies outside a certificate's bounds: one of the two has a fault."""


def check_bracket(records: Records, certificate: Certificate, *, first: int = 0) -> None:
    """Refuse records in which an attacked image contradicts its certificate.

    An attacked image lies in the certificate's ball, so its confidence is at least `lower` and the
    probability of the clean prediction is at most `upper`.

    Args:
        records: with bounds.
        certificate: that the bounds are of.
        first: the number of the first image, for messages.

    Raises:
        InputError: an image that left the certificate's ball, on which the two cannot be compared.
        UnsoundError: an image outside its bounds.
    """
    assert records.lower is not None and records.upper is not None
    length = {"linf": records.linf, "l2": records.l2}[certificate.norm]
    outside = length > certificate.eps * (1 + LENGTH) + LENGTH
    if outside.any():
        i = _first(outside)
        raise InputError(
            f"the attack moved image {first + i} by {float(length[i]):.4g} ({certificate.norm}), and the "
            f"certificate holds within {certificate.eps:.4g}: give both the same eps and norm"
        )
    found = records.attacked.double()
    prediction = records.clean.argmax(dim=1)
    of_prediction = found.gather(1, prediction[:, None])[:, 0]
    untied = lead(records.clean, prediction) > SLACK  # else the certificate may predict the other one
    low = found.amax(dim=1) < records.lower - SLACK
    high = untied & (of_prediction > records.upper + SLACK)
    if (low | high).any():
        i = _first(low | high)
        raise UnsoundError(
            f"image {first + i}: the attack found a confidence of {float(found[i].amax()):.6f} "
            f"({float(of_prediction[i]):.6f} for the clean prediction), outside the certified "
            f"[{float(records.lower[i]):.6f}, {float(records.upper[i]):.6f}]: the certificate or the judge "
            "has a fault, neither number can be used; please report it with the model"
        )


def check_below(lower: ArrayLike, found: ArrayLike, eps: float) -> None:
    """Refuse bounds (n,) that exceed the confidences (n,) that some attack within eps found.

    Raises:
        UnsoundError: it names the image.
    """
    low, top = np.asarray(lower), np.asarray(found)
    over = low > top + SLACK
    if over.any():
        i = int(over.argmax())
        raise UnsoundError(
            f"image {i}: an attack within {eps:.4g} found a confidence of {top[i]:.6f}, below the proved "
            f"{low[i]:.6f}: one of the two has a fault, neither number can be used"
        )


def _first(mask: Mask) -> int:
    return int(mask.int().argmax())

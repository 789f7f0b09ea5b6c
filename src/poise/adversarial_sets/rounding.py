"""Rounding to 8 bits that keeps an attacked image within its budget and in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poise.checks import InputError, check_images, check_number
from poise.naming import known_name
from poise.shapes import Images, Mask

ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
GRID = 0.02  # of a level: how far from a whole one a pixel of an 8-bit image may lie


def to_8_bits(x_adv: Images, x: Images, *, eps: float, norm: str = "linf") -> Images:
    """The attacked images (n, c, h, w), float32, with every pixel on a level k / 255 and ‖δ‖ ≤ eps still.

    Every change is cut to whole levels, towards x, which shortens it in every norm. Then those cut
    by more than half a level are taken to the next one, the most cut first, while the budget lasts.
    What is on levels already stays.

    >>> x, x_adv = torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.4, 1.7, 1.6]]]]) / 255
    >>> (255 * to_8_bits(x_adv, x, eps=4 / 255, norm="l1")).flatten().round().tolist()
    [0.0, 2.0, 2.0]
    >>> (255 * to_8_bits(x_adv, x, eps=3.8 / 255, norm="l1")).flatten().round().tolist()
    [0.0, 2.0, 1.0]

    Args:
        x_adv: the attacked images, within the budget.
        x: the clean images, on levels (to 0.02 of one).
        eps: the budget, in pixel units of [0, 1].
        norm: "linf", "l2" or "l1".

    Raises:
        InputError: clean images that are not 8-bit images, or attacked ones beyond the budget.
    """
    check_budget(x_adv, x, eps=eps, norm=norm)
    check_8_bits(x)
    center = (255 * x.double()).round()
    change = (255 * x_adv.double() - center).flatten(1)
    whole = change.abs().floor()
    cut = change.abs() - whole
    order, room = ORDERS[norm], 255 * _allowed(x, eps, norm)
    if order == torch.inf:
        affordable = whole + 1 <= room
    else:
        price, sequence = (whole + 1) ** order - whole**order, cut.argsort(dim=1, descending=True)
        left = room**order - (whole**order).sum(dim=1, keepdim=True)
        affordable = price.gather(1, sequence).cumsum(dim=1) <= left
        affordable = torch.zeros_like(affordable).scatter(1, sequence, affordable)
    steps = change.sign() * (whole + (affordable & (cut > 0.5)))
    return (center + steps.reshape(x.shape)).clamp(0, 255).float() / 255


def check_budget(x_adv: Images, x: Images, *, eps: float, norm: str) -> None:
    """Refuse attacked images beyond eps, but for rounding: 1e-5 of eps and half an ulp of 1 a pixel."""
    known_name(ORDERS, norm, "norm")
    check_number("eps", eps, 0, hint="eps is in pixel units of [0, 1], e.g. 8/255")
    check_images(x)
    check_images(x_adv, "x_adv")
    if x_adv.shape != x.shape or len(x) == 0:
        raise InputError(
            f"x and x_adv must be as many images of one shape, at least one, got {tuple(x.shape)} and "
            f"{tuple(x_adv.shape)}"
        )
    change = (x_adv.double() - x.double()).flatten(1)
    length = torch.linalg.vector_norm(change, ord=ORDERS[norm], dim=1)
    beyond = length > _allowed(x, eps, norm)
    if beyond.any():
        raise InputError(
            f"eps={eps:g} in {norm} must be the attack's budget: {named(beyond)} farther from x, up to "
            f"{float(length.max()):.6g}"
        )


def check_8_bits(x: Images) -> None:
    """Refuse clean images whose pixels are not on the levels k / 255."""
    levels = 255 * x.double()
    off = ((levels - levels.round()).abs() > GRID).flatten(1).any(dim=1)
    if off.any():
        raise InputError(
            f"x must be 8-bit images (pixels k / 255) to be kept in 8 bits, but {named(off)} not: attack "
            "(255 * x).round() / 255, or save as .npz"
        )


def named(mask: Mask) -> str:
    """How many images the mask holds and which, as the beginning of a sentence.

    >>> named(torch.tensor([False, True, True]))
    '2 of 3 images (1, 2) are'
    """
    places: list[int] = mask.nonzero()[:, 0].tolist()
    some = ", ".join(map(str, places[:10])) + (", ..." if len(places) > 10 else "")
    return f"{len(places)} of {len(mask)} images ({some}) {'is' if len(places) == 1 else 'are'}"


def _allowed(x: Tensor, eps: float, norm: str) -> float:
    """The budget and what float32 may add to it."""
    return eps * (1 + 1e-5) + 2.0**-24 * math.pow(x[0].numel(), 1 / ORDERS[norm])

"""8 bits that keep an attacked image within its budget, and what a model then says of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poise.attacks import Aim
from poise.checks import InputError, check_images, check_number
from poise.evaluation import evaluate
from poise.naming import known_name
from poise.objectives import MARGIN, lead
from poise.records import Records
from poise.shapes import Images, Labels, Mask, Model, PerSample, per_image

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
    order, room = ORDERS[norm], 255 * _allowance(x, eps, norm)
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
    beyond = length > _allowance(x, eps, norm)
    if beyond.any():
        raise InputError(
            f"eps={eps:g} in {norm} must be the attack's budget: {name_images(beyond)} farther from x, up "
            f"to {float(length.max()):.6g}"
        )


def check_8_bits(x: Images) -> None:
    """Refuse clean images whose pixels are not on the levels k / 255."""
    levels = 255 * x.double()
    off = ((levels - levels.round()).abs() > GRID).flatten(1).any(dim=1)
    if off.any():
        raise InputError(
            f"x must be 8-bit images (pixels k / 255) to be kept in 8 bits, but {name_images(off)} not: "
            "attack (255 * x).round() / 255, or save as .npz"
        )


def name_images(mask: Mask) -> str:
    """How many images the mask holds and which, as the beginning of a sentence.

    >>> name_images(torch.tensor([False, True, True]))
    '2 of 3 images (1, 2) are'
    """
    places: list[int] = mask.nonzero()[:, 0].tolist()
    some = ", ".join(map(str, places[:10])) + (", ..." if len(places) > 10 else "")
    return f"{len(places)} of {len(mask)} images ({some}) {'is' if len(places) == 1 else 'are'}"


def _allowance(x: Tensor, eps: float, norm: str) -> float:
    """The budget and what float32 may add to it."""
    return eps * (1 + 1e-5) + 2.0**-24 * math.pow(x[0].numel(), 1 / ORDERS[norm])


BATCH = 64
CLOSE = 0.01  # another machine may move a confidence by less
SHARES = (0.98, 0.95, 0.9, 0.8, 0.6, 0.3, 0.0)  # of the change, tried in turn: the boundary is often near


class _Replay:
    """An attack that hands out images made before, batch by batch."""

    aim = Aim(labels="prediction", keeps_label=False, wants="unknown")

    def __init__(self, x_adv: Images) -> None:
        self.batches = iter(torch.split(x_adv, BATCH))

    def __call__(
        self, model: Model, x: Images, y: Labels | None = None, *, generator: torch.Generator | None = None
    ) -> Images:
        made: Images = next(self.batches).to(x)
        return made


def replay(model: Model, x: Images, x_adv: Images, y: Labels) -> Records:
    """The records of images before and after an attack, in order."""
    batches = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
    return evaluate(model, batches, _Replay(x_adv), examples=0)


def round_back(
    model: Model | None, x: Images, x_adv: Images, y: Labels, eps: float, norm: str
) -> tuple[Images, PerSample]:
    """The attacked images in 8 bits, and the share (n,) of its change that each was left.

    With a model an image goes back towards x until its answer is the clean one again.
    """
    found, share = to_8_bits(x_adv, x, eps=eps, norm=norm), torch.ones(len(x))
    lost = torch.zeros(len(x), dtype=torch.bool) if model is None else ~_holds(replay(model, x, found, y))
    for less in SHARES:
        if model is None or not lost.any():
            break
        tried = to_8_bits(x + less * (x_adv - x), x, eps=eps, norm=norm)
        found, share = torch.where(per_image(lost), tried, found), share.where(~lost, less)
        lost[lost.clone()] = ~_holds(replay(model, x[lost], tried[lost], y[lost]))
    return found, share


def other_than_written(records: Records, answer: Labels | None, confidence: PerSample | None) -> Mask:
    """Where the answer or its confidence is not what was written down, if anything was."""
    now, label = records.attacked.max(dim=1)
    if answer is None or confidence is None:
        return torch.zeros_like(records.kept)
    return (label != answer) | ((now - confidence).abs() > CLOSE)


def _holds(records: Records) -> Mask:
    return records.kept & (lead(records.attacked, records.attacked.argmax(dim=1)) >= MARGIN)

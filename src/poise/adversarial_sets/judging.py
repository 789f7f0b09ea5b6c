"""What a model says of the images of an adversarial set, by forwards of its own."""

from __future__ import annotations

import torch

from poise.adversarial_sets.rounding import to_8_bits
from poise.attacks import Aim
from poise.evaluation import evaluate
from poise.records import Records
from poise.shapes import Images, Labels, Mask, Model, PerSample, per_image

BATCH = 64
MARGIN = 1e-4  # by how much a label has to lead after rounding, in probability
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


def judge(model: Model, x: Images, x_adv: Images, y: Labels) -> Records:
    """The records of images before and after an attack, in order."""
    batches = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
    return evaluate(model, batches, _Replay(x_adv), examples=0)


def rounded(
    model: Model | None, x: Images, x_adv: Images, y: Labels, eps: float, norm: str
) -> tuple[Images, PerSample]:
    """The attacked images in 8 bits, and the share (n,) of its change that each was left.

    With a model an image goes back towards x until its answer is the clean one again.
    """
    found, share = to_8_bits(x_adv, x, eps=eps, norm=norm), torch.ones(len(x))
    lost = torch.zeros(len(x), dtype=torch.bool) if model is None else ~_holds(judge(model, x, found, y))
    for less in SHARES:
        if model is None or not lost.any():
            break
        tried = to_8_bits(x + less * (x_adv - x), x, eps=eps, norm=norm)
        found, share = torch.where(per_image(lost), tried, found), share.where(~lost, less)
        lost[lost.clone()] = ~_holds(judge(model, x[lost], tried[lost], y[lost]))
    return found, share


def differing(records: Records, answer: Labels | None, confidence: PerSample | None) -> Mask:
    """Where the answer or its confidence is not what was written down, if anything was."""
    now, label = records.attacked.max(dim=1)
    if answer is None or confidence is None:
        return torch.zeros_like(records.kept)
    return (label != answer) | ((now - confidence).abs() > CLOSE)


def _holds(records: Records) -> Mask:
    first, second = records.attacked.topk(2, dim=1).values.unbind(dim=1)
    return records.kept & (first - second >= MARGIN)

"""Diagnostics of right and wrong answers: no better than chance, or better on pixels of another scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from poise.checks import InputError
from poise.diagnostics.finding import Finding
from poise.modes import call_model, evaluating, logits_in
from poise.records import Records
from poise.shapes import Images, Labels, Mask, Model

DOUBT = 0.05  # the chance of so many right answers by guessing, from which on a model may be guessing
SURE = 0.001  # and of so many more right answers on other pixels, under which they are no luck

SCALES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {  # what people's models were trained on
    "0 … 255": ("mean 0 and std 1/255", lambda x: 255 * x),
    "-1 … 1": ("mean 1/2 and std 1/2", lambda x: 2 * x - 1),
    "ImageNet's normalisation": (
        "mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)",
        lambda x: (x - _rgb(x, 0.485, 0.456, 0.406)) / _rgb(x, 0.229, 0.224, 0.225),
    ),
}


def answer_findings(records: Records) -> list[Finding]:
    """Whether the clean answers are no better than guessing: a wrong model, or labels that mean others.

    Guessing is one class in K, and accuracy is held against it by the binomial distribution; below the
    share of the commonest class an answer that is always the same would do better.
    """
    n, k = records.clean.shape
    if n == 0:
        return []
    right, share = int(records.correct.sum()), torch.bincount(records.y).max().item() / n
    by_luck = float(binom.sf(right - 1, n, 1 / k))
    if by_luck <= DOUBT and (right / n >= share or share == 1):
        return []
    why = (
        f"which guessing among {k} classes gives with probability {by_luck:.2g}"
        if by_luck > DOUBT
        else f"less than by naming the commonest class every time ({share:.3f})"
    )
    return [
        Finding(
            "no-better-than-chance",
            "",
            1 - right / n,
            f"Clean accuracy is {right / n:.3f} on {n} images, {why}.{_other_order(records)}",
            "Look first at the order of the classes, at the weights and at how the images are prepared.",
        )
    ]


def scale_findings(model: Model, x: Images, y: Labels) -> list[Finding]:
    """Whether the model answers more of the images right where their pixels are scaled otherwise.

    By the sign test over the images whose answers differ, and beyond what naming the commonest class
    gives, in one forward a scale. A model that refuses such pixels has none.
    """
    plain = _right(model, x, y)
    share = torch.bincount(y).max().item() / len(y)
    found = []
    for name, (told, scaled) in SCALES.items():
        if "ImageNet" in name and x.shape[1] != 3:
            continue
        try:
            other = _right(model, scaled(x), y)
        except InputError:
            continue
        more, fewer = int((other & ~plain).sum()), int((plain & ~other).sum())
        better = more and float(binom.sf(more - 1, more + fewer, 0.5)) < SURE / len(SCALES)
        if better and float(binom.sf(int(other.sum()) - 1, len(y), share)) < SURE:
            found.append((more - fewer, name, told))
    if not found:
        return []
    gain, name, told = max(found)
    return [
        Finding(
            "other-scale",
            "",
            gain / len(x),
            f"{gain} more of {len(x)} images are answered right with pixels in {name}: the model seems to "
            "want those.",
            f"Put {told} into the model (poise.models.Normalize; of an ONNX file its metadata mean and "
            "std, JSON lists of a number a channel).",
        )
    ]


def _other_order(records: Records) -> str:
    """What the accuracy would be by the best order of the labels, where that is no luck."""
    k = records.clean.shape[1]
    pairs = k * records.y + records.clean.argmax(dim=1)
    counts = torch.bincount(pairs, minlength=k * k).reshape(k, k)
    rows, columns = linear_sum_assignment(-counts.numpy())
    best = int(counts[rows, columns].sum())
    if best < 0.5 * len(records) or best <= 2 * int(records.correct.sum()):
        return ""
    moved = ", ".join(
        f"{a} as {b}" for a, b in zip(rows, columns, strict=True) if a != b and counts[a].sum() > 0
    )
    return f" With the labels in another order ({moved}) it would be {best / len(records):.3f}."


def _right(model: Model, x: Images, y: Labels) -> Mask:
    with evaluating(model), torch.no_grad():
        return logits_in(call_model(model, x)).argmax(dim=1) == y.to(x.device)


def _rgb(x: Tensor, *values: float) -> Tensor:
    return x.new_tensor(values).reshape(1, -1, 1, 1)

"""Adversarial sets: attacked images on the disk that still keep their labels and their budget.

`save` and `load` look at every image afresh: at its budget always, at its label and confidence by
forwards of the model where one is given. An image beyond the budget is refused, because then the set
is not what it says. Images that do not do what the set says are in `failed`, and a warning names them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.adversarial_sets import files
from poise.adversarial_sets.rounding import (
    check_8_bits,
    check_budget,
    name_images,
    other_than_written,
    replay,
    round_back,
    to_8_bits,
)
from poise.attacks import Attack
from poise.checks import InputError, check_labels
from poise.labels import match, names_of
from poise.naming import known_name
from poise.records import Records
from poise.shapes import Images, Labels, Mask, Model, PerSample
from poise.threat import BALLS

__all__ = ["AdversarialSet", "load", "save", "to_8_bits"]


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """Attacked images beside the clean ones, on the CPU, float32, in [0, 1].

    Attributes:
        x, x_adv: images (n, c, h, w) before and after the attack.
        y: true labels (n,).
        eps, norm: the budget, which every image keeps.
        attack: what made them, in words.
        keep_labels: whether the attack is one that keeps the model's answer.
        share: how much of its change each image was left (n,): 1, less where 8 bits lost the label.
        fingerprint: SHA-256 of all this, to publish apart from the set.
        records: what the model says of every image now; None without a model.
        failed: the places of images whose label is not kept or, of a set that was saved with a model,
            whose answer or confidence is another now; empty without a model.
    """

    x: Images
    x_adv: Images
    y: Labels
    eps: float
    norm: str
    attack: str
    keep_labels: bool
    share: PerSample
    fingerprint: str
    records: Records | None
    failed: tuple[int, ...]


def save(
    path: str | Path,
    x: Images,
    x_adv: Images,
    y: Labels,
    *,
    eps: float,
    norm: str = "linf",
    attack: Attack | str = "",
    model: Model | None = None,
    keep_labels: bool = True,
) -> AdversarialSet:
    """The set as it was written, to `load` from a .npz file or else from a folder of 8-bit PNGs.

    A .npz file holds float32. For PNGs x must be 8-bit images; x_adv is rounded within its budget
    (`to_8_bits`). Where that, or the attack, loses the model's answer, and the answer is to be kept,
    the image goes back towards x, by 2 % of its change, 5 %, and so on to x itself.

    Args:
        path: written whole or not at all; a folder must not be there yet.
        x: images (n, c, h, w) in [0, 1], grey or RGB for PNGs.
        x_adv: the same images attacked.
        y: true labels (n,).
        eps: the attack's budget.
        norm: and its norm.
        attack: the attack, or a word about it.
        model: images in [0, 1] -> logits; without it labels and confidence go unverified.
        keep_labels: False for an attack that is to change the answer.

    Raises:
        InputError: images beyond the budget, not in 8 bits, or anything else that cannot be right.
    """
    path, norm = Path(path), known_name(BALLS, norm, "norm")
    x, x_adv = (v.detach().to("cpu", torch.float32) for v in (x, x_adv))
    check_budget(x_adv, x, eps=eps, norm=norm)
    check_labels(y, len(x))
    y, share, meant = y.to("cpu", torch.int64), torch.ones(len(x)), None
    if path.suffix != ".npz":
        files.check_channels(x)
        check_8_bits(x)
        meant = None if model is None or keep_labels else replay(model, x, x_adv, y)
        x, (x_adv, share) = _levels(x), round_back(model if keep_labels else None, x, x_adv, y, eps, norm)
    records = None if model is None else replay(model, x, x_adv, y)
    failed = torch.zeros(len(x), dtype=torch.bool)
    tensors = {"x": x, "x_adv": x_adv, "y": y, "share": share}
    if records is not None:
        confidence, answer = records.attacked.max(dim=1)
        tensors |= {"answer": answer, "confidence": confidence}
        failed = ~records.kept if keep_labels else failed
        failed = failed if meant is None else meant.attacked.argmax(dim=1) != answer
    about, keep_labels = attack if isinstance(attack, str) else repr(attack), bool(keep_labels)
    facts = {
        "eps": eps,
        "norm": norm,
        "attack": about,
        "keep_labels": keep_labels,
        "classes": None if records is None else records.attacked.shape[1],
    }
    if records is not None and (names := names_of(model)):
        facts["class_names"] = list(names)
    mark = files.write_set(path, facts, tensors)
    _warn(path, failed, share)
    places = tuple(failed.nonzero()[:, 0].tolist())
    return AdversarialSet(x, x_adv, y, eps, norm, about, keep_labels, share, mark, records, places)


def load(path: str | Path, model: Model | None = None) -> AdversarialSet:
    """The set that lies there, every image looked at again; the file is not trusted.

    Args:
        path: what `save` was given.
        model: with it labels and confidence are judged afresh, and held against those of `save`
            (a confidence within 0.01). Labels are its own: classes that go by names are matched.

    Raises:
        InputError: no set, a damaged or changed one, images beyond its budget, or a model of other
            images or classes.
    """
    path = Path(path)
    facts, tensors, mark = files.read_checked(path)
    x, x_adv, y, share = (tensors[name] for name in ("x", "x_adv", "y", "share"))
    records, failed = None, torch.zeros(len(x), dtype=torch.bool)
    answer = tensors.get("answer")
    if model is not None:
        order = _order(path, facts, model)
        if order is not None:
            y, answer = order[y], None if answer is None else order[answer]
        records = replay(model, x, x_adv, y)
        classes = records.clean.shape[1]
        if facts["classes"] not in (None, classes):
            raise InputError(
                f"{str(path)!r} was made with a model of {facts['classes']} classes, this one has "
                f"{classes}: give the model that was attacked"
            )
        failed = other_than_written(records, answer, tensors.get("confidence"))
        failed |= ~records.kept & facts["keep_labels"]
        _warn(path, failed, torch.ones(1))
    places = tuple(failed.nonzero()[:, 0].tolist())
    return AdversarialSet(
        x,
        x_adv,
        y,
        facts["eps"],
        facts["norm"],
        facts["attack"],
        facts["keep_labels"],
        share,
        mark,
        records,
        places,
    )


def _order(path: Path, facts: Mapping[str, Any], model: Model) -> Labels | None:
    """For each of the set's classes, which of the model's it is by name; None where one has no names."""
    names, own = facts.get("class_names"), names_of(model)
    if names is None or own is None:
        return None
    return torch.tensor(match(names, own, outputs=len(own), what=f"the set {str(path)!r}"))


def _levels(x: Images) -> Images:
    return (255 * x.double()).round().float() / 255


def _warn(path: Path, failed: Mask, share: PerSample) -> None:
    """Say which images do not hold, and which were taken back."""
    if (share < 1).any():
        warnings.warn(
            f"{str(path)!r}: {name_images(share < 1)} taken back towards x, to keep the label", stacklevel=3
        )
    if failed.any():
        warnings.warn(
            f"{str(path)!r}: {name_images(failed)} not what the set says: the label is not kept, or the "
            "answer or its confidence is another",
            stacklevel=3,
        )

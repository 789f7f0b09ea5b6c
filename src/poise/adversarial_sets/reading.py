"""A set that was read, checked piece by piece before anyone uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.adversarial_sets import files
from poise.adversarial_sets.rounding import check_8_bits, check_budget
from poise.checks import InputError, check_choice, check_count, check_number, check_text
from poise.threat import BALLS

KINDS = {
    "x": torch.float32,
    "x_adv": torch.float32,
    "y": torch.int64,
    "share": torch.float32,
    "answer": torch.int64,
    "confidence": torch.float32,
}
VERIFIED = {"answer", "confidence"}


def checked(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The facts, tensors and fingerprint of a set that says nothing impossible.

    Raises:
        InputError: what cannot be right, and where.
    """
    facts, tensors = files.read(path)
    mark = files.fingerprint(facts, tensors)
    try:
        _check_facts(facts)
        _check_tensors(facts, tensors)
        check_budget(tensors["x_adv"], tensors["x"], eps=facts["eps"], norm=facts["norm"])
        if path.is_dir():
            check_8_bits(tensors["x"])
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be right: {error}") from error
    return facts, tensors, mark


def _check_facts(facts: dict[str, Any]) -> None:
    absent = {"eps", "norm", "attack", "keep_labels", "classes"} - facts.keys()
    if absent:
        raise InputError(f"it says nothing of {', '.join(sorted(absent))}")
    check_number("eps", facts["eps"], 0)
    check_choice("norm", facts["norm"], BALLS)
    if not isinstance(facts["attack"], str) or not isinstance(facts["keep_labels"], bool):
        raise InputError("attack must be a text and keep_labels true or false")
    check_text(facts["attack"], "attack")
    if facts["classes"] is not None:
        check_count("classes", facts["classes"], 2)
    names = facts.get("class_names")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (texts and len(names) == facts["classes"]):
        raise InputError("class_names must be as many texts as there are classes")


def _check_tensors(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    verified = facts["classes"] is not None
    expected = KINDS.keys() if verified else KINDS.keys() - VERIFIED
    if tensors.keys() != expected:
        raise InputError(f"it must hold {', '.join(sorted(expected))}, got {', '.join(sorted(tensors))}")
    n = len(tensors["x"]) if tensors["x"].ndim else 0
    for name, values in tensors.items():
        if values.dtype != KINDS[name]:
            raise InputError(f"{name} must be {KINDS[name]}, got {values.dtype}")
        if name not in files.PICTURES and values.shape != (n,):
            raise InputError(f"{name} must have shape ({n},), one an image, got {tuple(values.shape)}")
    for name in ("share", "confidence") if verified else ("share",):
        if not ((tensors[name] >= 0) & (tensors[name] <= 1)).all():
            raise InputError(f"{name} must lie in [0, 1]")
    most = facts["classes"] - 1 if verified else 2**31
    for name in ("y", "answer") if verified else ("y",):
        if not ((tensors[name] >= 0) & (tensors[name] <= most)).all():
            raise InputError(f"{name} must lie in [0, {most}], the model's classes")

"""Refusals: what is wrong, where, the bound, and the way out."""

from __future__ import annotations

import importlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BROKEN = (  # what readers of images, JSON, zip files and tables let through where a file is damaged
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
TOLERANCE = 1e-6  # what a round trip through a normalisation may leave outside [0, 1]


TELLING = 16  # numbers that do not all lie in [0, 1] by chance


class InputError(ValueError):
    """Something that the caller gave and can mend; its text is one message for a person."""


class RefusedError(InputError):
    """What the first of several processes says for all of them: this is another one."""


class NotFiniteError(InputError):
    """Numbers that became NaN or infinite."""


def settle(value: Any) -> None:
    """Store the numbers of a frozen value as Python's own, so that one written otherwise is the same value.

    >>> from dataclasses import dataclass
    >>> from fractions import Fraction
    >>> @dataclass(frozen=True)
    ... class Ball:
    ...     eps: float
    >>> ball = Ball(Fraction(1, 4))
    >>> settle(ball)
    >>> ball
    Ball(eps=0.25)
    """
    for field in fields(value):
        given = getattr(value, field.name)
        if isinstance(given, Real) and not isinstance(given, bool):
            plain = int(given) if isinstance(given, Integral) else float(given)
            object.__setattr__(value, field.name, plain)


def check_number(name: str, value: float, low: float, high: float = math.inf, *, hint: str = "") -> None:
    """Refuse a number outside [low, high], NaN, or not a number at all."""
    bad = isinstance(value, bool) or not isinstance(value, Real)
    if bad or not (low <= value <= high) or math.isinf(value):
        bound = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise InputError(f"{name} must be a number {bound}, got {value!r}" + _tail(hint))


def check_count(name: str, value: int, low: int = 0, high: int = 2**31 - 1) -> None:
    """Refuse anything but a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        bound = f"at most {high}" if isinstance(value, Integral) and value > high else f"at least {low}"
        raise InputError(f"{name} must be a whole number of {bound}, got {value!r}")


def check_text(text: str, what: str) -> None:
    """Refuse a name that no file of results could hold: one that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has a name that is not UTF-8, {text!r}: rename it") from error


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_images(x: Tensor, name: str = "x", *, first: int = 0) -> None:
    """Refuse what is not a floating NCHW batch in [0, 1] (one host synchronisation).

    Refused images are named by their place, counted from `first`.
    """
    import torch

    if not isinstance(x, torch.Tensor):
        way = ": use torch.as_tensor(x)" if hasattr(x, "__array__") else ""
        raise InputError(f"{name} must be a torch.Tensor of images, got {type(x).__name__}{way}")
    if not x.is_floating_point():
        raise InputError(f"{name} must be floating point in [0, 1], got {x.dtype}" + _tail(_to_unit(x)))
    if x.ndim != 4:
        raise InputError(
            f"{name} must have the four dimensions (n, channels, height, width), got shape {tuple(x.shape)}"
            + (": use x.unsqueeze(0) for one image" if x.ndim == 3 else "")
        )
    if x.shape[3] == 3 and x.shape[1] == x.shape[2] > 3:
        raise InputError(
            f"{name} has shape {tuple(x.shape)}, colours last, and (n, channels, height, width) is needed: "
            "use x.permute(0, 3, 1, 2)"
        )
    if x.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        where = places(~torch.isfinite(x.detach()).flatten(1).all(dim=1), first)
        raise InputError(
            f"{name} holds NaN or infinite pixels in {where}: look at how the images were loaded, or "
            "leave these out"
        )
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        off = ((x.detach() < -TOLERANCE) | (x.detach() > 1 + TOLERANCE)).flatten(1).any(dim=1)
        where = "" if off.all() else f" in {places(off, first)}"
        way = _to_unit(x) if 2 * int(off.sum()) > len(x) else ""
        raise InputError(
            f"{name} must lie in [0, 1], got [{low:.4g}, {high:.4g}]{where}: {way}{', or ' * bool(way)}"
            "give raw pixels and put the normalisation inside the model (poise.models.Normalize), so that "
            "eps is in pixel units"
        )


def places(mask: Tensor, first: int = 0) -> str:
    """Which images a mask holds, in words.

    >>> import torch
    >>> places(torch.tensor([False, True, True]), 64)
    'images 65, 66'
    """
    found = [first + place for place in mask.nonzero()[:, 0].tolist()]
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return f"image{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:10]))}{more}"


def scale_of(low: float, high: float, *, whole: bool) -> int | None:
    """The number that white must be, by the range of an array's values; None where that is not clear.

    >>> scale_of(0, 200, whole=True), scale_of(0, 4000, whole=True), scale_of(-1, 1, whole=False)
    (255, 65535, None)
    """
    levels = (255, 65535) if whole else (1, 255, 65535)
    return next((white for white in levels if low >= 0 and high <= white), None)


def _to_unit(x: Tensor) -> str:
    """How such pixels become numbers in [0, 1], where that is clear."""
    import torch

    if x.is_complex() or x.numel() == 0:
        return ""
    if x.dtype == torch.bool:
        return "use x.float()"
    exact = x.detach().double()
    low, high = (float(v) for v in exact.aminmax())
    white = 255 if x.dtype == torch.uint8 else scale_of(low, high, whole=not x.is_floating_point())
    if white is not None and white > 1:
        unless = ", x.float() if it is 1" if high <= 1 else ""
        return f"use x.float() / {white}" + (
            "" if x.dtype == torch.uint8 else f" if white is {white}{unless}"
        )
    if -1 - TOLERANCE <= low < 0 and x.is_floating_point() and high <= 1 + TOLERANCE:
        return "use (x + 1) / 2 if black is -1"
    return "" if x.is_floating_point() else "use (x - black) / (white - black), in floating point"


def check_labels(y: Tensor, n: int) -> None:
    """Refuse labels that are not n whole numbers."""
    import torch

    if not isinstance(y, torch.Tensor):
        way = ": use torch.as_tensor(y)" if isinstance(y, list | tuple) or hasattr(y, "__array__") else ""
        raise InputError(f"y must be a tensor of whole-number labels (int64), got {type(y).__name__}{way}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(
            f"y must be a tensor of whole-number labels (int64), got {y.dtype}" + _tail(_to_labels(y))
        )
    if y.shape != (n,):
        raise InputError(
            f"y must have one label an image, shape ({n},), got shape {tuple(y.shape)}"
            + _tail(_to_labels(y) if len(y.shape) and len(y) == n else "")
        )


def _to_labels(y: Tensor) -> str:
    """How such labels become one whole number an image, where that is clear."""
    if y.is_complex() or y.numel() == 0:
        return ""
    if y.ndim == 2 and y.shape[1] > 1:
        one_hot = bool(((y == 0) | (y == 1)).all()) and bool((y.long().sum(dim=1) == 1).all())
        if one_hot or (y.is_floating_point() and looks_like_probabilities(y, tolerance=1e-3)):
            return "use y.argmax(dim=1)" + ("" if one_hot else " if the likeliest class is the label")
        return ""
    column = "[:, 0]" if y.ndim == 2 else ""
    if y.is_floating_point() and not bool((y == y.round()).all()):
        return ""
    return f"use y{column}" + (".long()" if y.is_floating_point() or y.element_size() == 1 else "")


def check_logits(logits: Tensor, n: int, y: Tensor | None = None) -> None:
    """Refuse a model output that cannot be logits of n images (three host synchronisations)."""
    import torch

    if not isinstance(logits, torch.Tensor):
        raise InputError(
            f"the model must return a tensor of logits, got {type(logits).__name__}: "
            "wrap it, e.g. lambda x: model(x).logits"
        )
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        single = tuple(logits.shape) in ((n,), (n, 1))
        hint = "of one logit z an image, poise.models.TwoClasses(model) makes (-z/2, z/2)" if single else ""
        raise InputError(
            f"the model must return logits of shape (n, classes) = ({n}, at least 2), "
            f"got {tuple(logits.shape)}" + _tail(hint)
        )
    if not logits.is_floating_point():
        raise InputError(f"the model must return floating-point logits, got {logits.dtype}")
    if not torch.isfinite(logits).all():
        bad = ~torch.isfinite(logits).all(dim=1)
        where = "" if bad.all() else f" for {places(bad)} of its batch"
        raise NotFiniteError(
            f"the model returned NaN or infinite logits{where}: look at its weights and its normalisation"
        )
    rough = logits.element_size() < 4 or logits.numel() >= TELLING  # they may have been half precision
    if looks_like_probabilities(logits, tolerance=1e-2 if rough else 1e-5):
        raise InputError(
            "the model returns probabilities (rows are non-negative and sum to 1), logits are needed: "
            "take its softmax away, or wrap it: lambda x: model(x).clamp_min(1e-30).log()"
        )
    low, high = logits.aminmax() if logits.numel() >= TELLING else (-1, 1)
    if low >= 0 and 0.5 < high <= 1:  # where nothing is learnt, logits are smaller
        raise InputError(
            f"all {logits.numel()} outputs of the model lie in [0, 1] and rows do not sum to 1, as after "
            "a sigmoid, logits are needed: take it away; where several classes can be right, look at one "
            "at a time, poise.models.TwoClasses(model, column=k, sigmoid=True); if these are logits, "
            "lambda x: model(x) - 1 says so"
        )
    if y is not None and (y < 0).logical_or(y >= logits.shape[1]).any():
        raise InputError(
            f"y must lie in [0, {logits.shape[1] - 1}] for a model of {logits.shape[1]} classes, "
            f"got [{int(y.min())}, {int(y.max())}]{_count_hint(y, logits.shape[1])}"
        )


def looks_like_probabilities(rows: Tensor, *, tolerance: float) -> bool:
    """Whether every row is non-negative and sums to 1 within the tolerance."""
    low, off = rows.min(), (rows.sum(dim=1) - 1).abs().max()
    return bool((low >= 0).logical_and(off < tolerance))


def check_probabilities(probs: Tensor, y: Tensor | None = None) -> None:
    """Refuse rows that are not probabilities of at least two classes, or labels that do not fit."""
    import torch

    if not isinstance(probs, torch.Tensor) or probs.ndim != 2 or probs.shape[1] < 2:
        shape = tuple(probs.shape) if isinstance(probs, torch.Tensor) else type(probs).__name__
        raise InputError(
            f"probs must be a tensor of shape (n, classes) with at least 2 classes, got {shape}"
        )
    if len(probs) and not looks_like_probabilities(probs, tolerance=1e-3):
        raise InputError(
            "probs must be probabilities (rows in [0, 1] that sum to 1): use logits.softmax(dim=1)"
        )
    if y is not None:
        check_labels(y, len(probs))
        if len(y) and (y < 0).logical_or(y >= probs.shape[1]).any():
            raise InputError(
                f"y must lie in [0, {probs.shape[1] - 1}], got [{int(y.min())}, {int(y.max())}]"
                + _count_hint(y, probs.shape[1])
            )


def _tail(hint: str) -> str:
    return f": {hint}" if hint else ""


def _count_hint(y: Tensor, classes: int) -> str:
    low, high = int(y.min()), int(y.max())
    if low < 0:
        return ": where -1 stands for no label, leave those images out" if low == -1 else ""
    return ": use y - 1 if they are counted from 1" if low == 1 and high == classes else ""


def require(package: str, *, extra: str, what: str) -> ModuleType:
    """The package, or a message that names the extra of poise that brings it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise InputError(f"{what} needs the package {package}: pip install 'poise[{extra}]'") from error


def name_some(names: Sequence[str], most: int = 12) -> str:
    """Names on one line: the first ones, and how many more there are.

    >>> name_some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "none"

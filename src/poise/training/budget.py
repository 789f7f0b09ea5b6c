"""The budget inside a defense, wherever it lies: every field called `eps` of the values it is made of."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

T = TypeVar("T")


def budget(value: Any, *, linf: bool = False) -> float | None:
    """The first `eps` in a frozen value or in those that it holds; None where there is none.

    An eps of 1 or more in L∞ is none: all images in [0, 1] lie within it. With `linf` the lengths of
    other norms are passed over, for whoever needs a number of pixel units.

    >>> from poise import defenses
    >>> budget(defenses.build("at", eps=0.25)), budget(defenses.vanilla())
    (0.25, None)
    >>> budget(defenses.build("uat-gap-unprojected"))
    """
    if isinstance(value, tuple):
        parts: list[tuple[str, Any]] = [("", part) for part in value]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        return None
    for name, part in parts:
        if name != "eps" or not isinstance(part, float | int):
            found = budget(part, linf=linf)
        elif getattr(value, "norm", "linf") != "linf":
            found = None if linf else float(part)
        else:
            found = float(part) if part < 1 else None
        if found is not None:
            return found
    return None


def scale(value: T, factor: float) -> T:
    """The same frozen value with every `eps` in it times the factor.

    >>> from poise import defenses
    >>> scale(defenses.build("at", eps=0.5), 0.5) == defenses.build("at", eps=0.25)
    True
    """
    if isinstance(value, tuple) and type(value) is tuple:
        return cast(T, tuple(scale(part, factor) for part in value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        new = part * factor if field.name == "eps" and part is not None else scale(part, factor)
        if new is not part:
            changes[field.name] = new
    return replace(value, **changes) if changes else value

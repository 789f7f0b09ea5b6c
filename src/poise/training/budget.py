"""The budget inside a defense, wherever it lies: every field called `eps` of the values it is made of."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

T = TypeVar("T")


def budget(value: Any) -> float | None:
    """The first `eps` in a frozen value or in those that it holds; None where there is none.

    An eps of 1 or more is none: all images in [0, 1] lie within it.

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
        found = part if name == "eps" and isinstance(part, float | int) else budget(part)
        if found is not None and found < 1:
            return float(found)
    return None


def scaled(value: T, factor: float) -> T:
    """The same frozen value with every `eps` in it times the factor.

    >>> from poise import defenses
    >>> scaled(defenses.build("at", eps=0.5), 0.5) == defenses.build("at", eps=0.25)
    True
    """
    if isinstance(value, tuple) and type(value) is tuple:
        return cast(T, tuple(scaled(part, factor) for part in value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        new = part * factor if field.name == "eps" and part is not None else scaled(part, factor)
        if new is not part:
            changes[field.name] = new
    return replace(value, **changes) if changes else value

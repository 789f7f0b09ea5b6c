"""Names: of attacks, defenses, models and data, and what they stand for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from poise.checks import InputError

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of that name, by `known_name`."""
    return table[known_name(table, name, kind)]


def known_name(table: Iterable[str], name: str, kind: str) -> str:
    """The name as the table spells it; hyphens, underscores and capitals are alike.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    plain = {key.replace("-", "_"): key for key in table}
    if not isinstance(name, str):
        known = ", ".join(sorted(plain.values()))
        raise InputError(f"the {kind} must be named by a string, got {name!r} (known: {known})")
    key = plain.get(name.replace("-", "_").lower())
    if key is not None:
        return key
    near = difflib.get_close_matches(name.lower(), plain.values(), n=2, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}?" if near else "there is nothing like it"
    raise InputError(f"unknown {kind} {name!r}: {guess} (known: {', '.join(sorted(plain.values()))})")


def build(table: Mapping[str, Callable[..., T]], name: str, kind: str, options: Mapping[str, Any]) -> T:
    """What the factory of that name makes of those of the options that it takes and that are not None."""
    factory = lookup(table, name, kind)
    takes = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in options.items() if k in takes and v is not None})

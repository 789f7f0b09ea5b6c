"""Names: of attacks, defenses, models and data, and what they stand for."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from poise.checks import InputError

T = TypeVar("T")
FRACTION = re.compile(r"\s*[\d.eE+-]+\s*/\s*[\d.eE+-]+\s*")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of that name, by `known_name`."""
    return table[known_name(table, name, kind)]


def known_name(table: Iterable[str], name: str, kind: str) -> str:
    """The name as the table spells it; hyphens, underscores and capitals are alike.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    plain = {key.replace("-", "_").lower(): key for key in table}
    if not isinstance(name, str):
        known = ", ".join(sorted(plain.values()))
        raise InputError(f"the {kind} must be named by a string, got {name!r} (known: {known})")
    key = plain.get(name.replace("-", "_").lower())
    if key is not None:
        return key
    near = nearest(plain.values(), name, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}?" if near else "there is nothing like it"
    raise InputError(f"unknown {kind} {name!r}: {guess} (known: {', '.join(sorted(plain.values()))})")


def nearest(table: Iterable[str], name: str, *, cutoff: float = 0.6) -> list[str]:
    """The two names that are the most alike, if any are alike enough."""
    return difflib.get_close_matches(name.lower(), table, n=2, cutoff=cutoff)


def build(table: Mapping[str, Callable[..., T]], name: str, kind: str, options: Mapping[str, Any]) -> T:
    """What the factory of that name makes of the options; None leaves one at its default.

    Raises:
        InputError: an unknown name, or an option that this factory does not take.
    """
    factory = lookup(table, name, kind)
    given = {option: value for option, value in options.items() if value is not None}
    check_taken(factory, f"{kind} {name!r}", given)
    return factory(**given)


def check_taken(
    factory: Callable[..., object], who: str, given: Iterable[str], *, spelled: str = "", way_out: str = ""
) -> None:
    """Refuse options that the factory does not take, by their names: left out they would seem to hold.

    >>> check_taken(lambda *, beta=6.0: None, "defense 'trades'", ["steps"], spelled="--")
    Traceback (most recent call last):
    ...
    poise.checks.InputError: defense 'trades' does not take --steps: it takes beta=6.0
    """
    takes = inspect.signature(factory).parameters
    if unknown := [f"{spelled}{option}" for option in given if option not in takes]:
        known = ", ".join(f"{known}={p.default}" for known, p in takes.items()) or "no options"
        raise InputError(f"{who} does not take {' and '.join(unknown)}: it takes {known}{way_out}")


def take_known(factory: Callable[..., object], **options: Any) -> dict[str, Any]:
    """Those of the options that the factory takes and that are not None, for whoever asks many alike.

    >>> take_known(lambda *, beta=6.0: None, beta=3.0, steps=5)
    {'beta': 3.0}
    """
    takes = inspect.signature(factory).parameters
    return {name: value for name, value in options.items() if name in takes and value is not None}


def named_options(factory: Callable[..., object], texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE texts as options of the factory, their values read as JSON.

    Raises:
        InputError: an option that the factory does not take, or a text without an equals sign.

    >>> named_options(lambda *, beta=6.0, over=False: None, ["beta=3", "over=true"])
    {'beta': 3, 'over': True}
    """
    takes, found = inspect.signature(factory).parameters, {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in takes:
            known = ", ".join(f"{known}={p.default}" for known, p in takes.items()) or "there are none"
            raise InputError(f"unknown option {text!r}: give NAME=VALUE, of {known}")
        try:
            found[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            found[name] = number(value) if FRACTION.fullmatch(value) else value
    return found


def number(text: str, *, whole: bool = False) -> float:
    """A number as people write it, a fraction too.

    Raises:
        ValueError: it is none.

    >>> number("8/255") == 8 / 255, number("1e-3"), number("20", whole=True)
    (True, 0.001, 20)
    """
    try:
        if whole:
            return int(text)
        over, slash, under = text.partition("/")
        return float(over) / float(under) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        kind = "a whole number" if whole else "a number such as 0.03 or 8/255"
        raise ValueError(f"{kind} is needed, got {text!r}") from None


def spell(eps: float) -> str:
    """A budget as people write it.

    >>> spell(8 / 255), spell(0.1), spell(0)
    ('8/255', '0.1', '0')
    """
    whole = round(255 * eps)
    return f"{whole}/255" if whole and abs(255 * eps - whole) < 1e-9 else f"{eps:g}"


def seconds(text: str) -> float:
    """A time as people write it: 90, 90s, 30m or 2h.

    Raises:
        InputError: it is none.

    >>> seconds("90"), seconds("30m"), seconds("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    unit = {"s": 1, "m": 60, "h": 3600}
    digits = text.strip().lower()
    try:
        return float(digits.rstrip("smh")) * unit.get(digits[-1:], 1)
    except ValueError:
        raise InputError(f"a time such as 90s, 30m or 2h is needed, got {text!r}") from None


def plain(text: str, *, width: int | None = None) -> str:
    r"""The text on one line: what cannot be printed is spelt out, the middle of a long one left out.

    Line ends, terminal codes, marks that turn the direction of writing and bytes that are no text.

    >>> plain("a\nb\x1b[31m"), plain("abcdefghij", width=7)
    ('a\\nb\\x1b[31m', 'abcd…ij')
    """
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    if width is None or len(shown) <= width:
        return shown
    tail = (width - 1) // 3
    return f"{shown[: width - 1 - tail]}…{shown[len(shown) - tail :]}"

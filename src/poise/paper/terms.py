"""What a claim compares: cells of the tables, constants, and differences, ratios and least ones of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Ref(NamedTuple):
    """The name of a cell within one setting; `net` says whose, where a claim compares two nets."""

    defense: str
    attack: str
    metric: str
    net: str = ""


class Value(NamedTuple):
    """Mean over the seeds and standard deviation over them (None: not known, as with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """high − low."""

    high: Term
    low: Term


@dataclass(frozen=True)
class Size:
    """|of|."""

    of: Term


@dataclass(frozen=True)
class Ratio:
    """over / under."""

    over: Term
    under: Term


@dataclass(frozen=True)
class Least:
    """The least of some."""

    of: tuple[Term, ...]


@dataclass(frozen=True)
class Same:
    """A term whose cells come from the same nets and images: what holds net by net holds without noise."""

    of: Term


Term: TypeAlias = "Ref | float | Difference | Size | Ratio | Least | Same"
Numbers: TypeAlias = Mapping[Ref, Value]


def refs(term: Term) -> tuple[Ref, ...]:
    """The cells that a term reads.

    >>> refs(Difference(Ref("AT", "PGD", "msp"), 0.5))
    (Ref(defense='AT', attack='PGD', metric='msp', net=''),)
    """
    match term:
        case Ref():
            return (term,)
        case Size(of) | Same(of):
            return refs(of)
        case Difference(a, b) | Ratio(a, b):
            return refs(a) + refs(b)
        case Least(of):
            return tuple(ref for part in of for ref in refs(part))
        case _:
            return ()


def value(term: Term, numbers: Numbers) -> Value:
    """The term's mean and standard deviation, its cells taken as independent; NaN for a ratio to 0.

    >>> a, b = Ref("AT", "PGD", "msp"), Ref("AT", "before", "msp")
    >>> value(Difference(b, a), {a: Value(0.5, 0.03), b: Value(0.75, 0.04)})
    Value(mean=0.25, std=0.05)

    Raises:
        KeyError: a cell that is not there.
    """
    match term:
        case Ref():
            return numbers[term]
        case Size(of):
            mean, std = value(of, numbers)
            return Value(abs(mean), std)
        case Same(of):
            return Value(value(of, numbers).mean, 0.0)
        case Difference(a, b):
            high, low = value(a, numbers), value(b, numbers)
            return Value(high.mean - low.mean, pooled(high.std, low.std))
        case Ratio(a, b):
            return _ratio(value(a, numbers), value(b, numbers))
        case Least(of):
            return min((value(part, numbers) for part in of), key=lambda found: found.mean)
        case _:
            return Value(float(term), 0.0)


def pooled(*stds: float | None) -> float | None:
    """The root of the sum of squares; None if one is not known.

    >>> pooled(0.3, 0.4), pooled(0.3, None)
    (0.5, None)
    """
    known = [std for std in stds if std is not None]
    return math.hypot(*known) if len(known) == len(stds) else None


def _ratio(over: Value, under: Value) -> Value:
    """Over / under, the spread to first order."""
    if under.mean == 0:
        return Value(math.nan, None)
    mean = over.mean / under.mean
    slope = None if under.std is None else mean * under.std
    spread = pooled(over.std, slope)
    return Value(mean, None if spread is None else spread / abs(under.mean))


def text(term: Term) -> str:
    """The term in words.

    >>> text(Difference(Ref("AT", "before", "msp"), Ref("AT", "PGD", "msp")))
    'msp[AT, before] - msp[AT, PGD]'
    """
    match term:
        case Ref():
            return f"{term.metric}[{term.defense}, {term.attack}]" + (f" of {term.net}" if term.net else "")
        case Size(of):
            return f"|{text(of)}|"
        case Same(of):
            return text(of)
        case Difference(a, b):
            return f"{text(a)} - ({text(b)})" if isinstance(b, Difference) else f"{text(a)} - {text(b)}"
        case Ratio(a, b):
            return f"{text(a)} / {text(b)}"
        case Least(of):
            return f"least {_merged(of)}"
        case _:
            return f"{term:.4g}"


def _merged(parts: tuple[Term, ...]) -> str:
    """Several cells as one name with their alternatives; other terms one by one."""
    cells = [part for part in parts if isinstance(part, Ref)]
    if len(cells) < len(parts):
        return f"of {', '.join(map(text, parts))}"
    return text(Ref(*("|".join(dict.fromkeys(names)) for names in zip(*cells, strict=True))))

"""Numbers that carry their spread and name, compared by ordinary operators; and the nets they are of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import product
from operator import and_
from typing import NamedTuple

ROUNDING = 1e-9  # .12 asked and .12 found is enough, whatever the floats say
NEARNESS = ("own", "shortened", "other net", "other data")  # how near to the paper's own, nearest first


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its standard deviation, known by a name.

    Differences and ratios take the numbers as independent. What is not there is NaN, and goes on through
    them with the names of the cells that it lacks.

    >>> a, b = Mean(0.75, 0.04, "a"), Mean(0.5, 0.03, "b")
    >>> (a - b).mean, (a - b).std, abs(b - a).name
    (0.25, 0.05, '|b - a|')
    >>> (b < a).holds, (b < a).narrowest.text, a.exceeds(b, by=0.3).holds
    (True, 'b 0.5 < a 0.75', False)

    Args:
        mean: of the seeds; NaN where it was not measured, and for a ratio to 0.
        std: over them; None where it is not known, as with one seed.
        name: in the tables' words; a constant has none.
        lacks: cells that were not there.
    """

    mean: float
    std: float | None = 0.0
    name: str = ""
    lacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.4g}".lstrip()

    def __sub__(self, other: Mean | float) -> Mean:
        other = as_mean(other)
        right = other.name or str(other)
        if " - " in right and not right.startswith("|"):
            right = f"({right})"
        return Mean(
            self.mean - other.mean,
            pool(self.std, other.std),
            f"{self.name or self} - {right}",
            self.lacks + other.lacks,
        )

    def __truediv__(self, under: Mean) -> Mean:
        mean, spread = math.nan, None
        if under.mean != 0:
            mean = self.mean / under.mean
            spread = pool(self.std, None if under.std is None else mean * under.std)
        return Mean(
            mean,
            None if spread is None else spread / abs(under.mean),  # to first order
            f"{self.name} / {under.name}",
            self.lacks + under.lacks,
        )

    def __abs__(self) -> Mean:
        return replace(self, mean=abs(self.mean), name=f"|{self.name}|")

    def __lt__(self, other: Mean | float) -> Case:
        return as_mean(other).exceeds(self)

    def __gt__(self, other: Mean | float) -> Case:
        return self.exceeds(other)

    def exceeds(self, low: Mean | float, *, by: float = 0.0) -> Case:
        """Whether it is above another, and by how much at least; by < 0 is a tolerance."""
        low = as_mean(low)
        sign = "<" if low.mean < self.mean else ">" if low.mean > self.mean else "="
        asked = f" (asked: by {by:.4g})" if by > 0 else f" (within {-by:.4g})" if by else ""
        margin = Margin(
            self.mean - low.mean - by + (ROUNDING if by else 0.0),
            pool(low.std, self.std),
            f"{low} {sign} {self}{asked}",
            low.lacks + self.lacks,
        )
        return Case((margin,))

    def exactly(self) -> Mean:
        """The same without noise, for numbers of the same nets and images: what holds net by net."""
        return replace(self, std=0.0)


class Margin(NamedTuple):
    """By how much a comparison is so; below 0, it is not. noise: of the difference, None if not known."""

    value: float
    noise: float | None
    text: str
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Comparisons that must all be so, in one setting; joined by `&`."""

    margins: tuple[Margin, ...]
    setting: str = ""

    def __and__(self, other: Case) -> Case:
        return replace(self, margins=self.margins + other.margins)

    def __bool__(self) -> bool:
        raise TypeError("join comparisons by &, and ask a case for .holds: 'and' and a < b < c drop one")

    @property
    def lacks(self) -> tuple[str, ...]:
        """The cells that were not there."""
        return tuple(name for m in self.margins for name in m.lacks)

    @property
    def run(self) -> bool:
        """Whether all its numbers are there."""
        return not any(math.isnan(m.value) for m in self.margins)

    @property
    def holds(self) -> bool:
        """Whether all its comparisons are so."""
        return all(m.value > 0 for m in self.margins)

    @property
    def clear(self) -> bool | None:
        """Whether noise could not have made it; None if some spread is not known that would tell."""
        if self.holds:
            if any(m.noise is not None and m.value <= m.noise + 2 * ROUNDING for m in self.margins):
                return False
            return None if any(m.noise is None for m in self.margins) else True
        against = [m for m in self.margins if m.value <= 0]
        if any(m.noise is not None and -m.value > m.noise + 2 * ROUNDING for m in against):
            return True
        return None if any(m.noise is None for m in against) else False

    @property
    def narrowest(self) -> Margin:
        """The comparison that decides."""
        return min(self.margins, key=lambda m: m.value)


@dataclass
class Subject:
    """A net that claims are made of: an architecture on a data set, whatever it is trained by.

    Args:
        architectures, datasets: its own name, and the paper's that it stands for.
        kind: how near it is to the paper's own, one of `NEARNESS`.
        numbers: mean and standard deviation by (defense, attack, metric).
        role: what it is called beside another net.
    """

    architectures: list[str]
    datasets: list[str]
    kind: str = NEARNESS[0]
    numbers: dict[tuple[str, str, str], tuple[float, float | None]] = field(default_factory=dict)
    role: str = ""

    @property
    def name(self) -> str:
        """Its own."""
        return f"{self.architectures[0]} on {self.datasets[0]}"

    def __call__(self, attack: str, metric: str = "msp", defense: str = "Vanilla") -> Mean:
        """A cell; of the undefended net, unless told otherwise."""
        name = f"{metric}[{defense}, {attack}]" + (f" of {self.role}" if self.role else "")
        if (defense, attack, metric) not in self.numbers:
            return Mean(math.nan, None, name, (name,))
        return Mean(*self.numbers[defense, attack, metric], name)

    def msp(self, defense: str, attack: str = "ConfSmooth") -> Mean:
        """A defense's confidence."""
        return self(attack, "msp", defense)

    def accuracy(self, defense: str, attack: str = "PGD") -> Mean:
        """A defense's accuracy."""
        return self(attack, "accuracy", defense)

    def ece(self, defense: str, attack: str) -> Mean:
        """A defense's ECE."""
        return self(attack, "ece", defense)

    def least(
        self, attacks: Sequence[str], metric: str = "msp", defenses: Sequence[str] = ("Vanilla",)
    ) -> Mean:
        """The least of several cells."""
        some = [self(attack, metric, defense) for defense, attack in product(defenses, attacks)]
        lacks = tuple(name for one in some for name in one.lacks)
        least = Mean(math.nan, None) if lacks else min(some, key=lambda one: one.mean)
        name = self("|".join(attacks), metric, "|".join(defenses)).name
        return replace(least, name=f"least {name}", lacks=lacks)


def as_mean(given: Mean | float) -> Mean:
    """The number itself, or a constant as one."""
    return given if isinstance(given, Mean) else Mean(given)


def lowest(ours: Mean, *rivals: Mean) -> Case:
    """Ours is below each of them."""
    return every(ours < rival for rival in rivals)


def highest(ours: Mean, *rivals: Mean) -> Case:
    """Ours is above each of them."""
    return every(ours > rival for rival in rivals)


def every(cases: Iterable[Case]) -> Case:
    """All of them as one."""
    return reduce(and_, cases)


def pool(*stds: float | None) -> float | None:
    """The root of the sum of squares; None if one is not known.

    >>> pool(0.3, 0.4), pool(0.3, None)
    (0.5, None)
    """
    known = [std for std in stds if std is not None]
    return math.hypot(*known) if len(known) == len(stds) else None

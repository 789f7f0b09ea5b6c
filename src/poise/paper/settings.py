"""The settings that a claim ranges over: architectures on data sets, and pairs of architectures on one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

import polars as pl

from poise.checks import InputError
from poise.paper.terms import Numbers, Ref, Value

COLUMNS = ("architecture", "dataset", "defense", "attack", "metric", "mean", "std")


class Setting(NamedTuple):
    """A name for people, its numbers, and whether they stand in for the paper's own."""

    name: str
    numbers: Numbers
    stand_in: bool = False


@dataclass
class Net:
    """An architecture on a data set by its own names and the paper's that it stands for; its numbers."""

    architectures: list[str]  # its own first
    datasets: list[str]
    own: bool = True
    numbers: dict[Ref, Value] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its own."""
        return f"{self.architectures[0]} on {self.datasets[0]}"


@dataclass(frozen=True)
class Scope:
    """Settings by the paper's names, in any case of letters; () takes all.

    >>> some = Scope(datasets=("CIFAR-10",))
    >>> some.takes("LeNet", "cifar-10"), some.takes("LeNet", "CIFAR-100")
    (True, False)
    >>> Scope(but=("MNIST",)).takes("LeNet", "MNIST")
    False
    """

    architectures: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    but: tuple[str, ...] = ()  # data sets to leave out

    def takes(self, architecture: str, dataset: str) -> bool:
        """Whether it is one of them."""
        return self.takes_any([architecture], [dataset])

    def takes_any(self, architectures: Sequence[str], datasets: Sequence[str]) -> bool:
        """Whether one of several names of an architecture and of a data set is, and none is left out."""
        return (
            (not self.architectures or _among(architectures, self.architectures))
            and (not self.datasets or _among(datasets, self.datasets))
            and not _among(datasets, self.but)
        )


@dataclass(frozen=True)
class Pair:
    """Two nets on the same data, the cells of each under its role.

    Args:
        first, second: their roles (`Ref.net`).
        firsts, seconds: the paper's names of their architectures; seconds () takes all others.
    """

    first: str
    second: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...] = ()

    def takes(self, architectures: Sequence[str], others: Sequence[str]) -> bool:
        """Whether two nets of these names are such a pair."""
        if not _among(architectures, self.firsts) or _among(others, self.firsts):
            return False
        return not self.seconds or _among(others, self.seconds)


def settings(cells: pl.DataFrame, tables: tuple[str, ...], scope: Scope | Pair) -> list[Setting]:
    """Every setting that the cells have, in their order.

    Args:
        cells: as `judge` takes them.
        tables: rows of these tables only, where there is a column `table`; () for all rows.
        scope: which settings.

    Raises:
        InputError: a column missing, or two different numbers for one cell.
    """
    nets = _nets(_of_tables(cells, tables))
    if isinstance(scope, Scope):
        return [
            Setting(net.name, net.numbers, not net.own)
            for net in nets
            if scope.takes_any(net.architectures, net.datasets)
        ]
    return list(_pairs(nets, scope))


def _pairs(nets: Sequence[Net], pair: Pair) -> Iterator[Setting]:
    for a, b in permutations(nets, 2):
        if a.datasets[0] == b.datasets[0] and pair.takes(a.architectures, b.architectures):
            numbers = {ref._replace(net=pair.first): found for ref, found in a.numbers.items()}
            numbers |= {ref._replace(net=pair.second): found for ref, found in b.numbers.items()}
            yield Setting(f"{a.architectures[0]} and {b.name}", numbers, not (a.own and b.own))


def _of_tables(cells: pl.DataFrame, tables: tuple[str, ...]) -> pl.DataFrame:
    if missing := [name for name in COLUMNS if name not in cells.columns]:
        raise InputError(f"cells must have the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing")
    if not tables or "table" not in cells.columns:
        return cells
    return cells.filter(pl.col("table").cast(pl.String).is_in(tables))


def _nets(cells: pl.DataFrame) -> list[Net]:
    """The numbers of each architecture on each data set; one that stands for several is one."""
    nets: dict[tuple[str, str], Net] = {}
    for row in cells.iter_rows(named=True):
        mean, std = _number(row["mean"]), _number(row["std"])
        if mean is None:
            continue
        ref = Ref(row["defense"], row["attack"], row["metric"])
        found = Value(mean, None if row.get("n") == 1 else std)
        a, d = row["architecture"], row["dataset"]
        net = nets.setdefault((a, d), Net([a], [d]))
        for names, other in ((net.architectures, "of_architecture"), (net.datasets, "of_dataset")):
            if (of := row.get(other)) and of not in names:
                names.append(of)
        net.own &= row.get("own") is not False
        before = net.numbers.setdefault(ref, found)
        if before != found:
            raise InputError(
                f"two numbers for one cell ({', '.join((a, d, *ref[:3]))}): {before.mean:g} and "
                f"{found.mean:g}; filter the cells to one reading, budget or table"
            )
    return list(nets.values())


def _number(found: float | None) -> float | None:
    return None if found is None or math.isnan(found) else float(found)


def _among(names: Sequence[str], wanted: tuple[str, ...]) -> bool:
    return not {name.casefold() for name in names}.isdisjoint(name.casefold() for name in wanted)

"""The settings that a claim ranges over: architectures on data sets, and pairs of architectures on one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import polars as pl

from poise.checks import InputError
from poise.recipes.paper.terms import Numbers, Ref, Value

COLUMNS = ("architecture", "dataset", "defense", "attack", "metric", "mean", "std")


class Setting(NamedTuple):
    """A name for people, its numbers, and whether they stand in for the paper's own."""

    name: str
    numbers: Numbers
    stand_in: bool = False


class Net(NamedTuple):
    """An architecture on a data set, the paper's that it stands for, and whether it is that itself."""

    architecture: str
    dataset: str
    of_architecture: str
    of_dataset: str
    own: bool


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
        return (
            (not self.architectures or _is(architecture, self.architectures))
            and (not self.datasets or _is(dataset, self.datasets))
            and not _is(dataset, self.but)
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

    def takes(self, architecture: str, other: str) -> bool:
        """Whether these two are such a pair."""
        if not _is(architecture, self.firsts) or _is(other, self.firsts):
            return False
        return not self.seconds or _is(other, self.seconds)


Nets: TypeAlias = Mapping[Net, Numbers]


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
            Setting(f"{net.architecture} on {net.dataset}", numbers, not net.own)
            for net, numbers in nets.items()
            if scope.takes(net.of_architecture, net.of_dataset)
        ]
    return list(_pairs(nets, scope))


def _pairs(nets: Nets, pair: Pair) -> Iterator[Setting]:
    for a, ours in nets.items():
        for b, theirs in nets.items():
            if a.dataset == b.dataset and pair.takes(a.of_architecture, b.of_architecture):
                numbers = {ref._replace(net=pair.first): found for ref, found in ours.items()}
                numbers |= {ref._replace(net=pair.second): found for ref, found in theirs.items()}
                name = f"{a.architecture} and {b.architecture} on {a.dataset}"
                yield Setting(name, numbers, not (a.own and b.own))


def _of_tables(cells: pl.DataFrame, tables: tuple[str, ...]) -> pl.DataFrame:
    if missing := [name for name in COLUMNS if name not in cells.columns]:
        raise InputError(f"cells must have the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing")
    if not tables or "table" not in cells.columns:
        return cells
    return cells.filter(pl.col("table").cast(pl.String).is_in(tables))


def _nets(cells: pl.DataFrame) -> dict[Net, dict[Ref, Value]]:
    """The numbers of each architecture on each data set."""
    nets: dict[Net, dict[Ref, Value]] = {}
    for row in cells.iter_rows(named=True):
        mean, std = _number(row["mean"]), _number(row["std"])
        if mean is None:
            continue
        ref = Ref(row["defense"], row["attack"], row["metric"])
        found = Value(mean, None if row.get("n") == 1 else std)
        a, d = row["architecture"], row["dataset"]
        place = Net(
            a, d, row.get("of_architecture") or a, row.get("of_dataset") or d, row.get("own") is not False
        )
        before = nets.setdefault(place, {}).setdefault(ref, found)
        if before != found:
            raise InputError(
                f"two numbers for one cell ({', '.join((a, d, *ref[:3]))}): {before.mean:g} and "
                f"{found.mean:g}; filter the cells to one reading, budget or table"
            )
    return nets


def _number(found: float | None) -> float | None:
    return None if found is None or math.isnan(found) else float(found)


def _is(name: str, names: tuple[str, ...]) -> bool:
    return name.casefold() in map(str.casefold, names)

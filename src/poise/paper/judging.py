"""What a claim is, and the verdicts on claims from a table of numbers: the paper's own, or ours.

A claim is a function of a net's numbers: one case that must be so, or several that are counted. It ranges
over all nets (or pairs of nets on the same data) that the table has, is judged over those with every cell
that it needs, and its rule says in how many it must be so.

Means are compared. A tie is not 'lower', nor is it 'highest'. A difference is clear if it exceeds the root
of the summed squares of its two standard deviations (which are over seeds, wherever the table's are), and a
verdict is clear if it would be the same with every unclear setting counted either way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import permutations
from typing import NamedTuple, TypeAlias

import polars as pl

from poise.checks import InputError
from poise.paper.numbers import NEARNESS, Case, Subject, pool

_TAKES = ("architecture", "dataset", "defense", "attack", "metric", "mean", "std")  # columns that it takes
_GIVES = ("name", "section", "statement", "setting", "of", "verdict", "clear", "numbers")  # and gives
_SHOWN = 4  # settings that speak against a claim, in its text


class Ruling(NamedTuple):
    """A rule's verdict over the cases, whether it is clear, and the count or mean that decided."""

    holds: bool
    clear: str
    text: str


@dataclass(frozen=True)
class Count:
    """So in at least and at most such a share of the cases, both rounded up to whole cases.

    >>> [Count(at_least=Fraction(14, 15)).passes(held, 15) for held in (13, 14)]
    [False, True]
    >>> Count(at_least=Fraction(14, 15)).passes(1, 2)  # of two cases, both
    False
    """

    at_least: Fraction = Fraction(1)
    at_most: Fraction = Fraction(1)

    def passes(self, held: int, run: int) -> bool:
        """Whether so many of so many will do."""
        return math.ceil(self.at_least * run) <= held <= math.ceil(self.at_most * run)

    def __call__(self, cases: Sequence[Case]) -> Ruling:
        """The verdict over the cases."""
        run, held = len(cases), sum(case.holds for case in cases)
        holds = self.passes(held, run)

        def stands(unclear: tuple[bool | None, ...]) -> bool:
            sure = sum(case.holds and case.clear not in unclear for case in cases)
            possible = sum(case.holds or case.clear in unclear for case in cases)
            return all(self.passes(n, run) is holds for n in range(sure, possible + 1))

        clear = (
            "clear" if stands((False, None)) else "spread unknown" if stands((False,)) else "within noise"
        )
        return Ruling(holds, clear, f"{held} of {run}")


EVERY = Count()
MOST = Count(at_least=Fraction(5001, 10000))  # more than half, of up to 4999 cases


def on_average(cases: Sequence[Case]) -> Ruling:
    """Whether it is so on average over the cases: the mean of their margins is above 0."""
    margins = [case.narrowest for case in cases]
    mean = sum(m.value for m in margins) / len(margins)
    spread = pool(*(m.noise for m in margins))
    clear = "spread unknown"
    if spread is not None:
        clear = "clear" if abs(mean) > spread / len(margins) else "within noise"
    return Ruling(mean > 0, clear, f"on average {mean:+.4g} beyond what is asked, over {len(margins)}")


Chosen: TypeAlias = Callable[[Subject], bool]


def among(
    architectures: Sequence[str] = (), datasets: Sequence[str] = (), but: Sequence[str] = ()
) -> Chosen:
    """Which nets a claim is about: those with one of these names, in any case of letters; () takes all.

    >>> some = among(datasets=["CIFAR-10"])
    >>> some(Subject(["LeNet"], ["cifar-10"])), some(Subject(["LeNet"], ["CIFAR-100"]))
    (True, False)

    Args:
        architectures: by the paper's names or the net's own.
        datasets: likewise.
        but: data sets to leave out.
    """

    def chosen(net: Subject) -> bool:
        return (
            (not architectures or _share(net.architectures, architectures))
            and (not datasets or _share(net.datasets, datasets))
            and not _share(net.datasets, but)
        )

    return chosen


def _share(names: Sequence[str], wanted: Sequence[str]) -> bool:
    return not {name.casefold() for name in names}.isdisjoint(name.casefold() for name in wanted)


@dataclass(frozen=True)
class Claim:
    """A statement that numbers can judge.

    Args:
        name: short, in small letters.
        section: of the paper, and its tables and figures, or that it is ours. Of frames with a column
            `table`, it is judged on the tables that this names, or on all if it names none.
        statement: in plain words, with the tolerance where there is one.
        says: what must be so of a net (or of several, by their order in `of`); each case is counted.
        rule: in how many cases of all settings, or on average.
        of: which nets it is about; with two entries, pairs on the same data, by the nets' roles.
        separate: each case stands for itself: a setting that lacks some cells is judged on the rest.
    """

    name: str
    section: str
    statement: str
    says: Callable[..., Case | Iterable[Case]]
    rule: Callable[[Sequence[Case]], Ruling] = EVERY
    of: Mapping[str, Chosen] = field(default_factory=lambda: {"": among()})
    separate: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """The paper's tables that its section names."""
        named = re.search(r"Tables? (S?\d(?:, S?\d)*)", self.section)
        return tuple(named[1].split(", ")) if named else ()

    def cases(self, setting: Instance) -> list[Case]:
        """What it says there, the setting's name on each case."""
        said = self.says(*setting.nets)
        cases = [said] if isinstance(said, Case) else said
        return [replace(case, setting=setting.name) for case in cases]

    def judged(self, cases: Sequence[Case]) -> list[Case]:
        """Those whose cells are all there (a ratio to 0 is not); none if one is not, unless separate."""
        run = [case for case in cases if case.run]
        return run if self.separate or len(run) == len(cases) else []

    def settings(self, subjects: Sequence[Subject]) -> list[Instance]:
        """The nets, or pairs of nets on the same data, that it is about, in their order."""
        found = []
        for nets in permutations(subjects, len(self.of)):
            alike = len({net.datasets[0] for net in nets}) == 1
            if alike and all(chosen(net) for chosen, net in zip(self.of.values(), nets, strict=True)):
                found.append(Instance(*(replace(n, role=r) for r, n in zip(self.of, nets, strict=True))))
        return found


class Instance:
    """The nets that a claim is judged on at once, one or a pair."""

    def __init__(self, *nets: Subject) -> None:
        self.nets = nets
        self.name = " and ".join([*(net.architectures[0] for net in nets[:-1]), nets[-1].name])
        self.kind = max((net.kind for net in nets), key=NEARNESS.index)  # of the one that is farther off


def judge(claims: Iterable[Claim], cells: pl.DataFrame) -> pl.DataFrame:
    """The verdict on each claim, a row each.

    Columns: name, section, statement; setting, those it was judged on; of, how near these are to the
    paper's own: 'own', 'shortened' (its net and data, but shorter training, fewer images or other
    budgets), 'other net' (on its data) or 'other data' (null if not run), judged on the nearest that were
    run, as only 'own' is a verdict on the paper's nets; verdict, 'holds', 'fails' or 'not run' (no setting
    has all the cells it needs); clear, 'clear', 'within noise' or 'spread unknown' (null if not run);
    numbers, the figures that decided.

    Args:
        claims: CLAIMS, REFEREE or others.
        cells: architecture, dataset, defense, attack, metric, mean, std, and perhaps n (the number of
            seeds: with one, std says nothing), table (of the paper), of_architecture, of_dataset and own
            (the paper's names that it stands for, and whether it is that itself; so by default). A mean
            that is null or NaN was not measured.

    Raises:
        InputError: a column missing, or two different numbers for one cell.

    >>> under = [("AT", "PGD", 0.4), ("Vanilla", "PGD", 0.1)]
    >>> cells = pl.DataFrame([{"architecture": "LeNet", "dataset": "MNIST", "defense": d, "attack": a,
    ...     "metric": "accuracy", "mean": m, "std": None} for d, a, m in under])
    >>> claim = Claim("at-helps", "-", "AT helps", lambda net: net.accuracy("AT") > net.accuracy("Vanilla"))
    >>> judge([claim], cells).select("verdict", "clear").row(0)
    ('holds', 'spread unknown')
    """
    rows, of_tables = [], dict[tuple[str, ...], list[Subject]]()
    for claim in claims:
        if claim.tables not in of_tables:
            of_tables[claim.tables] = subjects(cells, claim.tables)
        rows.append(_row(claim, of_tables[claim.tables]))
    return pl.DataFrame(rows, schema=dict.fromkeys(_GIVES, pl.String), orient="row")


def subjects(cells: pl.DataFrame, tables: Sequence[str] = ()) -> list[Subject]:
    """Every net that the cells have, in their order; one that stands for several is one.

    Args:
        cells: as `judge` takes them.
        tables: rows of these tables only, where there is a column `table`; () for all rows.

    Raises:
        InputError: a column missing, or two different numbers for one cell.
    """
    if missing := [name for name in _TAKES if name not in cells.columns]:
        raise InputError(f"cells must have the columns {', '.join(_TAKES)}; {', '.join(missing)} missing")
    if tables and "table" in cells.columns:
        cells = cells.filter(pl.col("table").cast(pl.String).is_in(tables))
    nets: dict[tuple[str, str], Subject] = {}
    for row in cells.iter_rows(named=True):
        mean, std = row["mean"], row["std"]
        if mean is None or math.isnan(mean):
            continue
        known = std is not None and not math.isnan(std) and row.get("n") != 1
        found = (float(mean), float(std) if known else None)
        a, d = row["architecture"], row["dataset"]
        net = nets.setdefault((a, d), Subject([a], [d]))
        for names, of in ((net.architectures, "of_architecture"), (net.datasets, "of_dataset")):
            if (other := row.get(of)) and other not in names:
                names.append(other)
        net.kind = max(net.kind, _kind(row), key=NEARNESS.index)
        at = (row["defense"], row["attack"], row["metric"])
        before = net.numbers.setdefault(at, found)
        if before != found:
            raise InputError(
                f"two numbers for one cell ({', '.join((a, d, *at))}): {before[0]:g} and "
                f"{found[0]:g}; filter the cells to one reading, budget or table"
            )
    return list(nets.values())


def _kind(row: Mapping[str, str | bool | None]) -> str:
    """How near a cell's net is to what it stands for."""
    if row.get("own") is not False:
        return "own"
    if row.get("of_dataset") not in (None, row["dataset"]):
        return "other data"
    return "shortened" if row.get("of_architecture") in (None, row["architecture"]) else "other net"


def _row(claim: Claim, nets: Sequence[Subject]) -> tuple[str | None, ...]:
    there = {setting: claim.cases(setting) for setting in claim.settings(nets)}
    run = {setting: some for setting, cases in there.items() if (some := claim.judged(cases))}
    head = (claim.name, claim.section, claim.statement)
    if not run:
        return *head, "", None, "not run", None, _list_missing(there)
    kind = min((setting.kind for setting in run), key=NEARNESS.index)
    found = [case for setting, cases in run.items() if setting.kind == kind for case in cases]
    names = [setting.name for setting in run if setting.kind == kind]
    asked = [cases for setting, cases in there.items() if setting.kind == kind]
    ruling = claim.rule(found)
    share = "" if len(names) == len(asked) else f" ({len(names)} of {len(asked)} settings run)"
    if lacking := sum(len(there[setting]) for setting in run if setting.kind == kind) - len(found):
        share += f" ({lacking} more not run)"
    numbers = f"{ruling.text}{share}{_decide(found, ruling)}"
    return *head, "; ".join(names), kind, "holds" if ruling.holds else "fails", ruling.clear, numbers


def _decide(found: Sequence[Case], ruling: Ruling) -> str:
    """What speaks against the claim (or, of one on few cases, those); else the case nearest to that."""
    against, word = [case for case in found if not case.holds], "not so"
    if ruling.holds and 2 * len(against) > len(found):
        against, word = [case for case in found if case.holds], "so"
    if not against:
        nearest = min(found, key=lambda case: case.narrowest.value)
        return f"; narrowest: {nearest.setting}: {nearest.narrowest.text}"
    listed = "; ".join(f"{case.setting}: {case.narrowest.text}" for case in against[:_SHOWN])
    more = f"; and {len(against) - _SHOWN} more" if len(against) > _SHOWN else ""
    return f"; {word}: {listed}{more}"


def _list_missing(there: Mapping[Instance, Sequence[Case]]) -> str:
    """Which cells of the setting that has most of them are not there."""
    if not there:
        return "no such setting"
    lacking = {
        setting.name: list(dict.fromkeys(name for case in cases for name in case.lacks))
        for setting, cases in there.items()
    }
    name = min(lacking, key=lambda key: len(lacking[key]))
    if not lacking[name]:
        return f"{name}: a ratio to 0"
    more = f" and {len(lacking[name]) - 1} more" if len(lacking[name]) > 1 else ""
    return f"{name} lacks {lacking[name][0]}{more}"

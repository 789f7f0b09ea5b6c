"""Claims as data, and their verdicts on a table of numbers: the paper's own, or ours.

A claim says what must exceed what (`Less`) in each setting: an architecture on a data set, or a pair of
architectures on one. It ranges over all settings that the table has, is judged over those with every cell
that it needs, and its rule says in how many it must be so.

Means are compared. A tie is not 'lower', nor is it 'highest'. A difference is clear if it exceeds the root
of the summed squares of its two standard deviations (which are over seeds, wherever the table's are), and a
verdict is clear if it would be the same with every unclear setting counted either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import polars as pl

from poise.paper.settings import Pair, Scope, Setting, settings
from poise.paper.terms import Numbers, Ref, Term, pooled, refs, text, value

ROUNDING = 1e-9  # .12 asked and .12 found is enough, whatever the floats say
SHOWN = 4  # settings that speak against a claim, in its text


@dataclass(frozen=True)
class Less:
    """low < high.

    With `by`, high − low must be at least that; less than 0, it is a tolerance.
    """

    low: Term
    high: Term
    by: float = 0.0


Case: TypeAlias = tuple[Less, ...]  # all of them must be so


class Margin(NamedTuple):
    """By how much a comparison is so; below 0, it is not. noise: of the difference, None if not known."""

    value: float
    noise: float | None
    text: str


@dataclass(frozen=True)
class Finding:
    """One case in one setting."""

    setting: str
    margins: tuple[Margin, ...]

    @property
    def holds(self) -> bool:
        """Whether all its comparisons are so."""
        return all(m.value > 0 for m in self.margins)

    @property
    def clear(self) -> bool | None:
        """Whether noise could not have made it; None if some spread is not known that would tell."""
        if self.holds:
            known = all(m.noise is None or m.value > m.noise + 2 * ROUNDING for m in self.margins)
            return (None if any(m.noise is None for m in self.margins) else True) if known else False
        against = [m for m in self.margins if m.value <= 0]
        if any(m.noise is not None and -m.value > m.noise + 2 * ROUNDING for m in against):
            return True
        return None if any(m.noise is None for m in against) else False

    @property
    def narrowest(self) -> Margin:
        """The comparison that decides."""
        return min(self.margins, key=lambda m: m.value)


class Ruling(NamedTuple):
    """A rule's verdict over the findings, whether it is clear, and the count or mean that decided."""

    holds: bool
    clear: str
    text: str


Rule: TypeAlias = Callable[[Sequence[Finding]], Ruling]


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

    def __call__(self, findings: Sequence[Finding]) -> Ruling:
        """The verdict over the findings."""
        run, held = len(findings), sum(f.holds for f in findings)
        holds = self.passes(held, run)

        def stands(unclear: tuple[bool | None, ...]) -> bool:
            sure = sum(f.holds and f.clear not in unclear for f in findings)
            possible = sum(f.holds or f.clear in unclear for f in findings)
            return all(self.passes(n, run) is holds for n in range(sure, possible + 1))

        clear = (
            "clear" if stands((False, None)) else "spread unknown" if stands((False,)) else "within noise"
        )
        return Ruling(holds, clear, f"{held} of {run}")


EVERY = Count()
MOST = Count(at_least=Fraction(5001, 10000))  # more than half, of up to 4999 cases


class Mean:
    """So on average over the cases: the mean of their margins is above 0."""

    def __call__(self, findings: Sequence[Finding]) -> Ruling:
        """The verdict over the findings."""
        margins = [f.narrowest for f in findings]
        mean = sum(m.value for m in margins) / len(margins)
        spread = pooled(*(m.noise for m in margins))
        clear = "spread unknown"
        if spread is not None:
            clear = "clear" if abs(mean) > spread / len(margins) else "within noise"
        return Ruling(mean > 0, clear, f"on average {mean:+.4g} beyond what is asked, over {len(margins)}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that numbers can judge.

    Args:
        name: short, in small letters.
        section: of the paper, and its tables and figures, or that it is ours.
        statement: in plain words, with the tolerance where there is one.
        cases: what must be so in each setting; each case is counted.
        rule: in how many cases of all settings, or on average.
        tables: the paper's tables that it is about, for frames with a column `table`; () for any.
        scope: which settings it is about.
        separate: each case stands for itself: a setting that lacks some cells is judged on the rest.
    """

    name: str
    section: str
    statement: str
    cases: tuple[Case, ...]
    rule: Rule = EVERY
    tables: tuple[str, ...] = ()
    scope: Scope | Pair = field(default_factory=Scope)
    separate: bool = False

    @property
    def needs(self) -> tuple[Ref, ...]:
        """The cells that it needs of each setting."""
        sides = (side for case in self.cases for less in case for side in (less.low, less.high))
        return tuple(dict.fromkeys(ref for side in sides for ref in refs(side)))


def judge(claims: Iterable[Claim], cells: pl.DataFrame) -> pl.DataFrame:
    """The verdict on each claim, a row each.

    Columns: name, section, statement; setting, those it was judged on; of, whether these are the paper's
    'own' or a 'stand-in' for them (null if not run), which counts only where none of the own was run, and
    is no verdict on the paper's nets; verdict, 'holds', 'fails' or 'not run' (no setting has all the cells
    it needs); clear, 'clear', 'within noise' or 'spread unknown' (null if not run); numbers, the figures
    that decided.

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
    >>> vanilla, at = Ref("Vanilla", "PGD", "accuracy"), Ref("AT", "PGD", "accuracy")
    >>> claim = Claim(name="at-helps", section="-", statement="AT helps", cases=((Less(vanilla, at),),))
    >>> judge([claim], cells).select("verdict", "clear").row(0)
    ('holds', 'spread unknown')
    """
    rows = [_row(claim, cells) for claim in claims]
    return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def findings(claim: Claim, cells: pl.DataFrame) -> list[Finding]:
    """Every case of the claim in every setting that has its cells, in the order of the frame."""
    return [
        found for setting in settings(cells, claim.tables, claim.scope) for found in _in(claim, setting)
    ]


COLUMNS = ("name", "section", "statement", "setting", "of", "verdict", "clear", "numbers")


def _row(claim: Claim, cells: pl.DataFrame) -> tuple[str | None, ...]:
    there = settings(cells, claim.tables, claim.scope)
    by_setting = {setting.name: _in(claim, setting) for setting in there}
    run = [setting for setting in there if by_setting[setting.name]]
    head = (claim.name, claim.section, claim.statement)
    if not run:
        return *head, "", None, "not run", None, _missing(claim, there)
    stand_in = all(setting.stand_in for setting in run)
    there, run = ([s for s in some if s.stand_in is stand_in] for some in (there, run))
    found = [finding for setting in run for finding in by_setting[setting.name]]
    ruling = claim.rule(found)
    share = "" if len(run) == len(there) else f" ({len(run)} of {len(there)} settings run)"
    if lacking := len(run) * len(claim.cases) - len(found):
        share += f" ({lacking} more not run)"
    verdict = "holds" if ruling.holds else "fails"
    return (
        *head,
        "; ".join(setting.name for setting in run),
        "stand-in" if stand_in else "own",
        verdict,
        ruling.clear,
        f"{ruling.text}{share}{_deciding(found, ruling)}",
    )


def _in(claim: Claim, setting: Setting) -> list[Finding]:
    """The cases whose cells are all there (a ratio to 0 is not); none if one is not, unless separate."""
    found = []
    for case in claim.cases:
        try:
            margins = tuple(_margin(less, setting.numbers) for less in case)
        except KeyError:
            continue
        if not any(math.isnan(m.value) for m in margins):
            found.append(Finding(setting.name, margins))
    return found if claim.separate or len(found) == len(claim.cases) else []


def _margin(less: Less, numbers: Numbers) -> Margin:
    low, high = value(less.low, numbers), value(less.high, numbers)
    found = high.mean - low.mean - less.by + (ROUNDING if less.by else 0.0)
    sign = "<" if low.mean < high.mean else ">" if low.mean > high.mean else "="
    asked = f" (asked: by {less.by:.4g})" if less.by > 0 else f" (within {-less.by:.4g})" if less.by else ""
    words = f"{_shown(less.low, low.mean)} {sign} {_shown(less.high, high.mean)}{asked}"
    return Margin(found, pooled(low.std, high.std), words)


def _shown(term: Term, mean: float) -> str:
    return text(term) if isinstance(term, float | int) else f"{text(term)} {mean:.4g}"


def _deciding(found: Sequence[Finding], ruling: Ruling) -> str:
    """What speaks against the claim (or, of one on few cases, those); else the case nearest to that."""
    against, word = [f for f in found if not f.holds], "not so"
    if ruling.holds and 2 * len(against) > len(found):
        against, word = [f for f in found if f.holds], "so"
    if not against:
        nearest = min(found, key=lambda f: f.narrowest.value)
        return f"; narrowest: {nearest.setting}: {nearest.narrowest.text}"
    listed = "; ".join(f"{f.setting}: {f.narrowest.text}" for f in against[:SHOWN])
    more = f"; and {len(against) - SHOWN} more" if len(against) > SHOWN else ""
    return f"; {word}: {listed}{more}"


def _missing(claim: Claim, there: Sequence[Setting]) -> str:
    """Which cells of the setting that has most of them are not there."""
    if not there:
        return "no such setting"
    lacking = {s.name: [ref for ref in claim.needs if ref not in s.numbers] for s in there}
    name = min(lacking, key=lambda key: len(lacking[key]))
    if not lacking[name]:
        return f"{name}: a ratio to 0"
    more = f" and {len(lacking[name]) - 1} more" if len(lacking[name]) > 1 else ""
    return f"{name} lacks {text(lacking[name][0])}{more}"

"""What an audit found: a value with its sentence, its tables and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from poise.auditing import answers, pairs
from poise.auditing.affected import Affected
from poise.auditing.answers import Answer, Evidence
from poise.auditing.pairs import RAW, TELLS_NOT, Pair
from poise.checks import InputError
from poise.job_file import COUNT, FINDINGS, NUMBER, TEXT, TEXTS, Kind, check_fields, or_none, read_json
from poise.metrics.intervals import UNKNOWN, Number, tell_count, tell_share
from poise.naming import spell

MANY = 2  # models up to which the verdict says everything of each
SCHEMA = 1  # of `Audit.content`; docs/audit.md says what the fields are

_MANY: Kind = ("a list of objects", lambda v: isinstance(v, list) and all(isinstance(e, dict) for e in v))
_ONE: Kind = ("an object", lambda v: isinstance(v, dict))
_SHARE: Kind = or_none(NUMBER)
FIELDS: Mapping[str, Mapping[str, Kind]] = {  # of the whole, and of the objects in its lists
    "audit": {
        "schema": COUNT,
        "verdict": TEXT,
        "threshold": NUMBER,
        "epsilons": ("a list of numbers", lambda v: isinstance(v, list) and all(map(NUMBER[1], v))),
        "asked": _ONE,
        "made": _ONE,
        "models": _MANY,
        "pairs": _MANY,
    },
    "models": {
        "name": TEXT,
        "folder": TEXT,
        "k": _SHARE,
        "slack": NUMBER,
        "left_out": TEXTS,
        "findings": FINDINGS,
        "answers": _MANY,
        "recalibrated": _MANY,
    },
    "answers": {
        "question": TEXT,
        "eps": NUMBER,
        "of": TEXT,
        "estimate": _SHARE,
        "low": _SHARE,
        "high": _SHARE,
        "n": COUNT,
        "count": or_none(COUNT),
    },
    "pairs": {
        **dict.fromkeys(("first", "second", "grounds", "holds"), TEXT),
        **dict.fromkeys(("eps", "slack"), NUMBER),
        **dict.fromkeys(("kept_by_first", "kept_by_second", "difference", "low", "high"), _SHARE),
        "n": COUNT,
    },
}


@dataclass(frozen=True, eq=False)
class Model:
    """One model of an audit.

    Attributes:
        name: as pages show it, no two alike.
        folder: of its records.
        evidence: what was seen of it, for pictures.
        found: every number of it.
        recalibrated: the same numbers once its temperature is fitted on held-out images and it is attacked
            again; empty where there is no such temperature.
        k: that multiplier of its logits, or None.
        slack: what ten times the steps changed in the share of trusted answers, on a sample.
        left_out: what of the suite could not be run, in words.
        findings: what makes its numbers doubtful, as `poise.diagnostics` has them.
        affected: the images that lose the most confidence, for pictures.
    """

    name: str
    folder: str
    evidence: Evidence
    found: Sequence[Answer]
    recalibrated: Sequence[Answer] = ()
    k: float | None = None
    slack: float = 0.0
    left_out: Sequence[str] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    affected: Sequence[Affected] = ()

    def number(
        self, question: str, eps: float = 0.0, of: str = "", *, recalibrated: bool = False
    ) -> Number:
        """The answer to one question; unknown where it was not asked."""
        found = self.recalibrated if recalibrated else self.found
        asked = (question, eps, of)
        return next((a.number for a in found if (a.question, a.eps, a.of) == asked), UNKNOWN)


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found of one model or several.

    Attributes:
        models: in the order in which they were given.
        pairs: each two of them compared.
        threshold: from which on an answer is trusted.
        epsilons: the budgets, rising.
        asked: the data, images, classes, size, seed and what else was asked.
        made: versions, device, time.
    """

    models: Sequence[Model]
    pairs: Sequence[Pair]
    threshold: float
    epsilons: Sequence[float]
    asked: Mapping[str, Any]
    made: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """What a person has to know, in a few plain sentences."""
        eps, k = self.epsilons[-1], len(self.models[0].evidence.classes)
        if len(self.models) > MANY:
            parts = [_of_best(self, eps), _of_all(self, eps)]
        else:
            parts = [*(_of_model(self, m, eps) for m in self.models), *_of_pairs(self, eps)]
        if self.refers_nothing:
            parts.insert(0, f"With {k} classes no confidence is below 1/{k}: this threshold says nothing.")
        return " ".join(parts)

    @property
    def refers_nothing(self) -> bool:
        """Whether no answer can have a confidence below the threshold."""
        return len(self.models[0].evidence.classes) * self.threshold <= 1

    def frame(self) -> pl.DataFrame:
        """Every number: model, question, eps, of (a class), estimate, low, high, n, count, recalibrated."""
        parts = []
        for model in self.models:
            for found, flag in ((model.found, False), (model.recalibrated, True)):
                if found:
                    table = answers.frame(model.name, found)
                    parts.append(table.with_columns(pl.lit(flag).alias("recalibrated")))
        return pl.concat(parts)

    @property
    def content(self) -> dict[str, Any]:
        """All of it as plain values, by version SCHEMA; null where nothing is known."""
        plain = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "epsilons": list(self.epsilons),
            "asked": dict(self.asked),
            "made": dict(self.made),
            "models": [
                {
                    "name": m.name,
                    "folder": m.folder,
                    "k": m.k,
                    "slack": m.slack,
                    "left_out": list(m.left_out),
                    "findings": [dict(finding) for finding in m.findings],
                    "answers": [_flat(answer) for answer in m.found],
                    "recalibrated": [_flat(answer) for answer in m.recalibrated],
                }
                for m in self.models
            ],
            "pairs": pairs.pairs_frame(self.pairs).to_dicts() if self.pairs else [],
        }
        known: dict[str, Any] = _null_unknown(plain)
        return known

    def to_json(self) -> str:
        """`content` as text."""
        return json.dumps(self.content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """The page of it, everything inside."""
        from poise.auditing.page import html

        return html(self)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, as notebooks show it."""
        page, look = escape(self.to_html()), "width:100%;height:80vh;border:0"
        return f'<iframe title="{escape(self.verdict)}" style="{look}" srcdoc="{page}"></iframe>'


def read_content(file: str | Path) -> dict[str, Any]:
    """The `content` of an audit in its audit.json, every field of its kind.

    Raises:
        InputError: no such file, one of another version, or a field that is missing or of another kind.
    """
    file = Path(file)
    content = read_json(file)
    if content.get("schema") != SCHEMA:
        raise InputError(f"{str(file)!r} is of schema {content.get('schema')!r}, and {SCHEMA} is read here")
    check_fields(file, content, FIELDS["audit"])
    for name in ("models", "pairs"):
        for part in content[name]:
            check_fields(file, part, FIELDS[name])
    for model in content["models"]:
        for answer in [*model["answers"], *model["recalibrated"]]:
            check_fields(file, answer, FIELDS["answers"])
    return content


def _of_model(audit: Audit, model: Model, eps: float) -> str:
    kept, trusted = model.number("trusted_kept", eps), model.number("trusted")
    if not kept.n:
        return f"{model.name} has no right answer with a confidence of {audit.threshold:g} or more."
    lost = trusted.n and kept.n - (kept.count or 0)
    text = (
        f"{model.name}: of {kept.n} right answers with a confidence of {audit.threshold:g} or more, "
        f"{kept.count} keep it when every pixel may change by {spell(eps)} of its range, "
        f"{tell_share(kept)}; {lost} can be pushed below it while the answer stays right"
    )
    proved = model.number("trusted_certified", eps)
    text += f" (of {proved.count} it is proved that no change can)" if proved.n else ""
    noise = model.number("trusted_kept_in_noise", eps)
    text += f" (random noise of that size: {noise.n - (noise.count or 0)})." if noise.n else "."
    again = model.number("trusted_kept", eps, recalibrated=True)
    if again.n:
        same = abs(again.estimate - kept.estimate) <= max(
            kept.high - kept.estimate, again.high - again.estimate
        )
        changes = "changes nothing that can be told from chance" if same else "changes that"
        text += f" Recalibration {changes}: {tell_count(again)}."
    return text


def _of_best(audit: Audit, eps: float) -> str:
    """Who of many models holds more than the most others, by all fair grounds, and who may be as good."""
    names = [model.name for model in audit.models]
    above: dict[str, set[str]] = {name: set() for name in names}
    for first, second, fair in _compared(audit, eps):
        who = {pair.holds for pair in fair}
        if len(who) == 1 and who != {TELLS_NOT}:
            winner = who.pop()
            above[winner].add(second if winner == first else first)
    best = max(names, key=lambda name: len(above[name]))
    rest = [name for name in names if name != best and name not in above[best]]
    if not above[best]:
        return f"Of {len(names)} models none can be told to hold more than another on all fair grounds."
    than = f"{len(above[best])} of the {len(names) - 1} others" if rest else "all others"
    told = f"; it cannot be told from {', '.join(rest)}" if rest else ""
    return f"{best} holds more than {than} on all fair grounds{told}."


def _of_all(audit: Audit, eps: float) -> str:
    """How many trusted answers each model keeps."""
    kept = {model.name: model.number("trusted_kept", eps) for model in audit.models}
    each = "; ".join(
        f"{name} {tell_count(number) if number.n else 'none'}" for name, number in kept.items()
    )
    return (
        f"Right answers with a confidence of {audit.threshold:g} or more that keep it when every pixel may "
        f"change by {spell(eps)} of its range: {each}."
    )


def _compared(audit: Audit, eps: float) -> Iterator[tuple[str, str, list[Pair]]]:
    """Every two models, and how they compare on the grounds that a change of scale cannot win."""
    for first, second in dict.fromkeys((pair.first, pair.second) for pair in audit.pairs):
        found = [p for p in audit.pairs if (p.first, p.second, p.eps) == (first, second, eps)]
        yield first, second, [pair for pair in found if pair.grounds != RAW] or found


def _of_pairs(audit: Audit, eps: float) -> list[str]:
    """For each two models who holds more: where all grounds agree that a change of scale cannot win."""
    said = []
    for first, second, fair in _compared(audit, eps):
        who = {pair.holds for pair in fair}
        if who == {TELLS_NOT}:
            said.append(f"Between {first} and {second} these images cannot tell which holds more.")
        elif len(who) == 1:
            last = fair[-1]
            off = last.difference
            points = "–".join(f"{100 * v:.0f}" for v in sorted((abs(off.low), abs(off.high))))
            said.append(
                f"{who.pop()} holds more: {last.grounds} it keeps {100 * abs(off.estimate):.0f} points "
                f"more of its trusted answers ({points}), and on all other fair grounds too."
            )
        else:
            each = "; ".join(f"{pair.grounds} {pair.holds}" for pair in fair)
            said.append(f"Which of {first} and {second} holds more depends on the grounds: {each}.")
    return said


def _flat(answer: Answer) -> dict[str, Any]:
    plain = asdict(answer)
    return {**{name: plain[name] for name in ("question", "eps", "of")}, **plain["number"]}


def _null_unknown(value: Any) -> Any:
    """The value with None for every number that is none."""
    if isinstance(value, dict):
        return {name: _null_unknown(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_null_unknown(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

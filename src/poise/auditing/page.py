"""The audit's page for who decides: one HTML file without network or script; Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poise.auditing.answers import LOST
from poise.auditing.outcome import Audit, Model
from poise.auditing.pairs import RAW, TELLS_NOT, Pair
from poise.checks import InputError
from poise.metrics.intervals import UNKNOWN, Number, percent, tell_count, tell_share
from poise.naming import spell
from poise.report import escaping
from poise.report.drawings import Drawing, Line, draw_curves, draw_distributions
from poise.report.page import ROOM, level, render, show_change, write_texts
from poise.report.tables import Table

CLASSES = 20  # shown of a model, the most affected ones
FEW = 3  # models of which every pair is shown at once
LIMIT = 5_000_000  # bytes of the page

QUESTIONS = {  # in the order of the table, in words
    "accuracy": "right answers, of all",
    "trusted": "right and trusted answers, of all",
    "trusted_kept": "of the right and trusted answers: still trusted",
    "trusted_certified": "of the right and trusted answers: proved to stay trusted",
    "trusted_kept_in_noise": "of the right and trusted answers: still trusted in random noise",
    "needless": "right answers not trusted (needless referrals)",
    "missed": "wrong answers trusted (missed referrals)",
    "pushed_above": "wrong answers that were not trusted, pushed above the threshold",
    "confidence": "mean confidence",
    "confidence_in_noise": "mean confidence in random noise",
    "confidence_of_right": "mean confidence of right answers",
    "confidence_certified": "mean confidence of right answers: proved to be at least",
    "stable": "R: right answers that no attack changed (an upper estimate)",
    "bound": "(1 + R) / 2: the most that the mean confidence of right answers can be",
    "ece": "ECE, 15 bins",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
    "aurc": "AURC",
    "auroc": "AUROC of errors",
}
KEPT = "Right and trusted answers that stay trusted"
LOOKS = ("attack", "noise", "third")  # of lines, in the page's style
DECIMAL = ("ece", "brier", "nll", "aurc", "auroc")  # no shares
LIMITS = (
    "It speaks of these images and others of their kind: not of another device, place or year.",
    "The worst case is the worst that was found. There may be worse: true losses are at least these.",
    "Only changes within the bound were tried: no turned, blurred or foreign images, no faulty sensor.",
    "The ranges tell what other images of the same kind would change. They do not allow for wrong labels, "
    "nor for how the model would have come out of another training.",
)


@dataclass(frozen=True)
class Headline:
    """One of the three numbers of the first screen: its name, itself, and a sentence that counts."""

    name: str
    number: Number
    told: str


def html(audit: Audit) -> str:
    """The page, everything inside it, under 5 MB.

    Raises:
        InputError: so many models that their numbers alone are more.
    """
    text = _render("page.html", audit)
    if (size := len(text.encode())) > LIMIT:
        raise InputError(
            f"a page of {len(audit.models)} models takes {size / 1e6:.1f} MB, more than {LIMIT / 1e6:g}: "
            "audit fewer models at once"
        )
    return text


def opening(audit: Audit) -> tuple[str, str]:
    """The verdict in one line, and in one plain sentence more."""
    eps, first = audit.epsilons[-1], audit.models[0]
    if audit.refers_nothing:
        k = len(first.evidence.classes)
        return f"A threshold of {percent(audit.threshold)} says nothing here.", (
            f"With {k} classes no confidence can be below {percent(1 / k)}, so that every answer is "
            "trusted, whatever the image. Audit again with a higher threshold."
        )
    if len(audit.models) > 1:
        return _leader(audit), (
            f"{len(audit.models)} models on the same {len(first.evidence.y)} images: for each image the "
            "most harmful small change was sought that leaves the answer as it is."
        )
    kept = first.number("trusted_kept", eps)
    if not kept.n:
        return "This model is not trusted even before any change.", (
            f"None of its right answers has a confidence of {percent(audit.threshold)} or more."
        )
    few, half = (1 - share for share in LOST.values())
    word = "holds" if kept.low >= few else "does not hold" if kept.high <= half else "holds only in part"
    noise = first.number("trusted_kept_in_noise", eps)
    beside = f" Random noise of that size does it to {_count_lost(noise)}." if noise.n else ""
    return f"This model’s confidence {word}.", (
        f"{_count_lost(kept).capitalize()} of the {kept.n} right answers that it was trusted with can be "
        "made to look doubtful by small changes of the image, though the answer itself stays the same."
        f"{beside}"
    )


def _count_lost(kept: Number) -> str:
    return str(kept.n - (kept.count or 0)) if kept.count != kept.n else "none"


def _leader(audit: Audit) -> str:
    """Who holds more on all grounds that a change of the confidence's scale cannot win."""
    at = _at_last(audit)
    fair = [pair for pair in at if pair.grounds != RAW] or at
    for name in (model.name for model in audit.models):
        mine = [pair for pair in fair if name in (pair.first, pair.second)]
        if mine and all(pair.holds == name for pair in mine):
            return f"The confidence of {short(name)} holds more."
    if all(pair.holds == TELLS_NOT for pair in fair):
        return "These images cannot tell which model’s confidence holds more."
    if len(audit.models) == 2 and len(who := {pair.holds for pair in fair} - {TELLS_NOT}) == 1:
        return (
            f"The confidence of {short(who.pop())} holds more on some grounds, on others one cannot tell."
        )
    if len(audit.models) > 2:
        return "No model’s confidence holds more than all others’."
    return "Which model’s confidence holds more depends on how they are compared."


def _at_last(audit: Audit) -> list[Pair]:
    return [pair for pair in audit.pairs if pair.eps == audit.epsilons[-1]]


def facts(audit: Audit) -> list[tuple[str, str]]:
    """What was tested, how far it was changed, when an answer is trusted: in plain words, in experts'."""
    n, eps = len(audit.models[0].evidence.y), audit.epsilons[-1]
    return [
        (f"{n} images of {escaping.plain(str(audit.asked['data']))}", f"n = {n}"),
        (f"each pixel changed by at most {level(eps)} of 255 grey levels", f"ε = {spell(eps)}"),
        (
            f"an answer is trusted from a confidence of {100 * audit.threshold:.4g} % on",
            f"threshold {audit.threshold:.4g}",
        ),
    ]


def headline_numbers(audit: Audit, model: Model) -> list[Headline]:
    """The three numbers of the first screen."""
    eps = audit.epsilons[-1]
    kept, needless, missed = (model.number(q, eps) for q in ("trusted_kept", "needless", "missed"))
    before = {question: model.number(question) for question in ("needless", "missed")}
    stays, sent, believed = (f"{number.count} of {number.n}" for number in (kept, needless, missed))
    if missed.n:
        wrong = f"{believed} wrong answers; before the change: {before['missed'].count}."
    elif before["missed"].n:
        wrong = f"Not tried under changes; before them {before['missed'].count} of {before['missed'].n}."
    else:
        wrong = "No answer was wrong, so that none could be."
    told = (
        f"{stays} right answers that were trusted before the change."
        if kept.n
        else "No right answer was trusted, even before the change.",
        f"{sent} right answers; before the change: {before['needless'].count}."
        if needless.n
        else "No answer was right.",
        wrong,
    )
    names = ("Right answers still trusted", "Right answers sent to a person", "Wrong answers trusted")
    return [Headline(*of) for of in zip(names, (kept, needless, missed), told, strict=True)]


def model_curves(model: Model) -> list[Drawing]:
    """Trusted answers kept, and mean confidence, against the budget: the worst case, noise beside it."""
    drawn = []
    for title, question in ((KEPT, "trusted_kept"), ("Mean confidence of all answers", "confidence")):
        found = {"worst case": _along(model, question)}
        if model.evidence.noise:
            found["noise"] = [found["worst case"][0], *_along(model, f"{question}_in_noise")[1:]]
        if model.evidence.certified and question == "trusted_kept":
            found["proved"] = [found["worst case"][0], *_along(model, "trusted_certified")[1:]]
        drawn.append(_curve(title, found, model))
    return drawn


def shared_curves(audit: Audit) -> list[Drawing]:
    """The trusted answers that each of a few models keeps, in one figure."""
    if not 1 < len(audit.models) <= FEW:
        return []
    found = {escaping.plain(m.name, width=14): _along(m, "trusted_kept") for m in audit.models}
    return [_curve(KEPT, found, audit.models[0])] if len(found) == len(audit.models) else []


def _along(model: Model, question: str) -> list[Number]:
    return [model.number(question, eps) for eps in (0.0, *model.evidence.epsilons)]


def _curve(title: str, found: Mapping[str, Sequence[Number]], model: Model) -> Drawing:
    at = [0.0, *model.evidence.epsilons]
    lines = [Line(name, look, numbers) for look, (name, numbers) in zip(LOOKS, found.items(), strict=False)]
    names, across = [level(eps) for eps in at], "largest change, of 255 grey levels"
    return draw_curves(title, lines, at, names=names, across=across)


def distributions(audit: Audit, model: Model) -> list[Drawing]:
    """Histograms of the confidence and reliability, before and in the worst case."""
    seen = model.evidence.lowest
    before, after = seen[0.0].top, seen[audit.epsilons[-1]].top
    return draw_distributions(before, after, model.evidence.right, threshold=audit.threshold)


def classes(audit: Audit, model: Model) -> list[tuple[str, Number, Number]]:
    """Of each class, the needless referrals of its images and of the answers that name it, worst first."""
    at, rows = {(a.question, a.of): a.number for a in model.found if a.eps == audit.epsilons[-1]}, []
    for name in model.evidence.classes:
        of_true, of_named = (at.get((f"needless_by_{of}", name), UNKNOWN) for of in ("true", "predicted"))
        if of_true.n or of_named.n:
            rows.append((name, of_true, of_named))
    return sorted(rows, key=lambda row: -max(of.estimate if of.n else 0.0 for of in row[1:]))


def tell_loss(model: Model) -> list[str]:
    """At which budgets 5 % and half of the trusted answers are lost, in words."""
    said, known = [], model.evidence.epsilons

    def end(eps: float) -> str:
        beyond = " or less" if eps <= known[0] else " or more" if eps >= known[-1] else ""
        return f"{level(eps)}{beyond}"

    for question, share in LOST.items():
        number, of = model.number(question), f"{percent(share)} of the trusted answers"
        middle, low, high = map(end, (number.estimate, number.low, number.high))
        if low == high and math.isfinite(number.estimate):
            said.append(f"{of} are lost at {middle} of 255 grey levels, the end of what was tried.")
        elif math.isfinite(number.estimate):
            said.append(f"{of} are lost at {middle} of 255 grey levels (range {low} to {high}).")
    return said


def numbers(model: Model) -> Table:
    """Every number of a model but those by class: a line a question, a column a budget."""
    asked = dict.fromkeys(a.question for a in model.found if not a.of and a.question not in LOST)
    order = [q for q in QUESTIONS if q in asked] + [q for q in asked if q not in QUESTIONS]
    budgets = sorted({a.eps for a in model.found})
    rows = [[QUESTIONS.get(q, q), *(_write(q, model.number(q, eps)) for eps in budgets)] for q in order]
    if model.recalibrated:
        kept = [model.number("trusted_kept", eps, recalibrated=True) for eps in budgets]
        rows.append(
            [f"{QUESTIONS['trusted_kept']} once recalibrated (k = {model.k:.3g})", *map(tell_count, kept)]
        )
    return Table(["", *("unchanged" if not eps else spell(eps) for eps in budgets)], rows)


def overview(audit: Audit) -> Table:
    """The three numbers of every model."""
    lines = [
        [short(model.name), *(tell_count(of.number) for of in headline_numbers(audit, model))]
        for model in audit.models
    ]
    return Table(["model", *(of.name.lower() for of in headline_numbers(audit, audit.models[0]))], lines)


def comparison(audit: Audit) -> Table:
    """The pairs of models at the largest budget, each way of comparing a line."""
    lines = []
    for pair in _at_last(audit):
        off, names = pair.difference, (pair.first, pair.second)
        apart = f"{100 * off.estimate:+.0f} ({100 * off.low:+.0f} to {100 * off.high:+.0f})"
        kept = [f"{short(name)}: {tell_share(of)}" for name, of in zip(names, pair.kept, strict=True)]
        lines.append([pair.grounds, short(pair.holds), apart if math.isfinite(off.low) else "-", *kept])
    return Table(["compared", "holds more", "points apart", "first", "second"], lines, words=2)


def league(audit: Audit) -> Table:
    """For each model, how many of the others it holds more and less than, on each of the grounds."""
    at, lines = _at_last(audit), []
    grounds = list(dict.fromkeys(pair.grounds for pair in at))
    for name in (model.name for model in audit.models):
        cells = []
        for ground in grounds:
            mine = [p for p in at if p.grounds == ground and name in (p.first, p.second)]
            more, open_ = (sum(p.holds == who for p in mine) for who in (name, TELLS_NOT))
            cells.append(f"{more} / {len(mine) - more - open_} / {open_}")
        lines.append([short(name), *cells])
    return Table(["model", *grounds], lines)


def doubts(audit: Audit) -> list[str]:
    """What makes the numbers doubtful, the heaviest first, each once with what it is about.

    What could not be run weighs most, then what concerns the most images.
    """
    found: dict[str, list[tuple[float, str, str]]] = {}
    for model in audit.models:
        name = model.name if len(audit.models) > 1 else ""
        for text in model.left_out:
            found.setdefault(text, []).append((math.inf, text, name))
        for of in model.findings:
            about = ", ".join(filter(None, (name, of["attack"])))
            found.setdefault(of["kind"], []).append((of["share"], f"{of['seen']} {of['advice']}", about))
    lines = []
    for alike in sorted(found.values(), key=lambda alike: -max(weight for weight, *_ in alike)):
        _, text, first = max(alike)
        others = dict.fromkeys(about for *_, about in alike if about != first)
        lines.append(f"{first}: {text}" if first else text)
        lines[-1] += f" (Also {'; '.join(others)}.)" if others else ""
    return [escaping.plain(line) for line in lines]


def markdown(audit: Audit) -> str:
    """The page's numbers in Markdown."""
    return _render("page.md", audit)


def latex(audit: Audit) -> str:
    """The page's tables in LaTeX, for the booktabs package."""
    tables = [("; ".join(f"{words} ({short})" for words, short in facts(audit)), overview(audit))]
    tables += [("compared", comparison(audit))] if audit.pairs else []
    tables += [(model.name, numbers(model)) for model in audit.models]
    return "\n".join(f"% {escaping.plain(name)}\n{table.latex()}" for name, table in tables)


def write_page(audit: Audit, out: str | Path) -> Path:
    """Write audit.html, audit.md and audit.tex into the folder `out`; the page's path.

    Raises:
        InputError: a full disk, or what `html` refuses.
    """
    texts = {"md": markdown(audit), "tex": latex(audit), "html": html(audit)}
    return write_texts(texts, out, name="audit")


def _render(template: str, audit: Audit) -> str:
    """The template with what the functions here find in the audit."""
    found = (
        opening,
        facts,
        headline_numbers,
        overview,
        league,
        comparison,
        model_curves,
        shared_curves,
        distributions,
        classes,
    )
    told = (
        tell_loss,
        numbers,
        doubts,
        provenance,
        show_affected,
        level,
        short,
        spell,
        tell_share,
        tell_count,
    )
    return render(
        template,
        (*found, *told),
        package="poise.auditing",
        audit=audit,
        eps=audit.epsilons[-1],
        limits=LIMITS,
        few=FEW,
        most=CLASSES,
    )


def show_affected(audit: Audit, model: Model) -> list[dict[str, object]]:
    """The most affected images as data, in the room that each picture has."""
    room = ROOM // max(1, sum(len(each.affected) for each in audit.models))
    return [{"of": of, **show_change(of.clean, of.attacked, room=room)} for of in model.affected]


def provenance(audit: Audit) -> dict[str, object]:
    """How the audit was made, the command first; what its models were stands with them."""
    asked = {k: v for k, v in audit.asked.items() if k not in ("kind", "models", "classes", "size_of")}
    asked["eps"] = [spell(eps) for eps in audit.epsilons]
    whole = {"command": None, **audit.made, **asked}
    return {name: value for name, value in whole.items() if value is not None}


def short(name: str) -> str:
    """A name as tables have room for; its section has all of it."""
    return escaping.plain(name, width=48)


def _write(question: str, number: Number) -> str:
    """A number of the table, a dash where there is none."""
    if not number.n or math.isnan(number.estimate):
        return "-"
    if question not in DECIMAL:
        return tell_count(number)
    known = math.isfinite(number.low)
    return f"{number.estimate:.3f}" + (f" ({number.low:.3f}–{number.high:.3f})" if known else "")

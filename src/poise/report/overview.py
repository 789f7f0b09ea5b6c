"""What chosen attacks did to models: a row an attack, a sentence a model, and a page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from poise import metrics
from poise.checks import check_number
from poise.report.drawings import Drawing, draw_distributions
from poise.report.escaping import WIDTH, escape_markdown, plain
from poise.report.page import ROOM, render, show_change, write_texts
from poise.report.runs import Attacked, Audit, read_all, tell_apart
from poise.report.tables import Table

COLUMNS = {  # of the printed table: its heading and how a number is written
    "confidence": ("confidence", "{:.3f}"),
    "ece": ("ECE", "{:.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "referred": ("referred", "{:.3f}"),
    "label_kept": ("label kept", "{:.3f}"),
    "delta_w": ("ΔW", "{:.4f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "seconds": ("seconds", "{:.1f}"),
}
HEADING = ["model", "attack", *(heading for heading, _ in COLUMNS.values())]


def report(runs: Sequence[str | Path], out: str | Path, *, threshold: float = 0.5) -> Path:
    """Write report.html, report.md and report.tex into the folder `out`; the page's path.

    Args:
        runs: folders of audits (`poise evaluate --out RUN`).
        out: the folder to write into.
        threshold: the confidence under which an answer is referred to a person.

    Raises:
        InputError: a run that is not there, not finished or no audit; a threshold outside [0, 1]; a
            full disk.
    """
    check_number("threshold", threshold, 0, 1)
    audits = read_all(runs)
    return write_report(audits, summary(audits, threshold=threshold), out, threshold=threshold)


def summary(audits: Sequence[Audit], *, threshold: float = 0.5) -> pl.DataFrame:
    """One row an audit and attack, before and after; audits of one title are told apart in it.

    `referred` is the share of right answers that keep their label at a confidence under the
    threshold: each would be sent to a person for nothing. NaN where no answer is right. `lost` is the
    number of answers, right or wrong, that the attack changes.
    """
    rows = [
        row(audit.title, attacked, threshold=threshold)
        for audit in tell_apart(audits)
        for attacked in audit.attacked
    ]
    return pl.DataFrame(rows)


def row(title: str, attacked: Attacked, *, threshold: float) -> dict[str, str | int | float]:
    """One row of `summary`."""
    r = attacked.records
    right = r.correct
    name = plain(attacked.name, width=WIDTH)
    values: dict[str, str | int | float] = {"model": title, "attack": name, "images": len(r)}
    for suffix, probs in (("", r.clean), ("_attacked", r.attacked)):
        unsure = (probs.max(dim=1).values < threshold) & (probs.argmax(dim=1) == r.clean.argmax(dim=1))
        values |= {
            f"confidence{suffix}": metrics.confidence(probs),
            f"ece{suffix}": metrics.ece(probs, r.y),
            f"accuracy{suffix}": metrics.accuracy(probs, r.y),
            f"referred{suffix}": float(unsure[right].double().mean()),
        }
    return values | {
        "label_kept": metrics.label_kept(r.clean, r.attacked),
        "lost": int((~r.kept).sum()),
        "delta_w": float(r.wasserstein.double().mean()),
        "ssim": float(r.ssim.double().mean()),
        "seconds": attacked.seconds,
    }


def cells(frame: pl.DataFrame) -> list[list[str]]:
    """The table as text under HEADING: for each model a line without attack, then a line an attack.

    The number of images stands in brackets.
    """
    lines: list[list[str]] = []
    for model, part in frame.group_by("model", maintain_order=True):
        rows = part.to_dicts()
        clean = {name: rows[0].get(name) if f"{name}_attacked" in rows[0] else None for name in COLUMNS}
        lines.append([f"{model[0]} ({rows[0]['images']})", "none", *_numbers(clean)])
        for line in rows:
            attacked = {name: line.get(f"{name}_attacked", line.get(name)) for name in COLUMNS}
            lines.append(["", line["attack"], *_numbers(attacked)])
    return lines


def _numbers(values: Mapping[str, float | None]) -> list[str]:
    return [
        "" if (value := values[name]) is None else form.format(value) for name, (_, form) in COLUMNS.items()
    ]


def summary_table(frame: pl.DataFrame) -> Table:
    """A `summary` as a table."""
    return Table(HEADING, cells(frame), words=2)


def markdown(frame: pl.DataFrame) -> str:
    """A `summary` in Markdown."""
    return summary_table(frame).markdown()


def latex(frame: pl.DataFrame) -> str:
    """A `summary` in LaTeX, for the booktabs package."""
    return summary_table(frame).latex()


def write_report(
    audits: Sequence[Audit], table: pl.DataFrame, out: str | Path, *, threshold: float
) -> Path:
    """`report` of audits that are read already, with their summary; the page's path."""
    texts = {
        "md": markdown(table) + headlines(audits, threshold=threshold),
        "tex": latex(table),
        "html": page(audits, table, threshold=threshold),
    }
    return write_texts(texts, out, name="report")


def page(audits: Sequence[Audit], table: pl.DataFrame, *, threshold: float) -> str:
    """The HTML page, everything inside it."""
    room = ROOM // max(1, sum(len(audit.attacked) for audit in audits))
    return render(
        "report.html",
        (finding, draw_worst, changes, describe_run, list_doubts),
        audits=tell_apart(audits),
        table=summary_table(table),
        threshold=threshold,
        room=room,
    )


def draw_worst(audit: Audit, threshold: float) -> list[Drawing]:
    """The figures of the confidence before, and in the worst case."""
    r = audit.worst.records
    before, after = (p.double().amax(dim=1).numpy() for p in (r.clean, r.attacked))
    return draw_distributions(before, after, r.correct.numpy(), threshold=threshold)


def changes(audit: Audit, room: int) -> list[dict[str, object]]:
    """What each attack did to one image: of those kept, the right answer least sure in its worst case."""
    r = audit.worst.records
    kept = len(r.x)
    if not kept:
        return []
    i = int((r.attacked.amax(dim=1)[:kept] + 2 * (~r.correct[:kept])).argmin())
    shown = []
    for part in audit.attacked:
        before, after = (float(p[i].max()) for p in (part.records.clean, part.records.attacked))
        facts = {
            "name": part.name,
            "before": before,
            "after": after,
            "lost": not bool(part.records.kept[i]),
        }
        pixels = (x[i].numpy() for x in (part.records.x, part.records.x_adv))
        shown.append(facts | show_change(*pixels, room=room))
    return shown


def list_doubts(audit: Audit) -> list[str]:
    """What makes its numbers doubtful, each with what it is about."""
    return [
        f"{found['attack'] or 'model'}: {found['seen']} {found['advice']}"
        for found in audit.content.get("findings", ())
    ]


def describe_run(audit: Audit) -> dict[str, object]:
    """How it was measured: the job, each attack in full, the circumstances."""
    content = audit.content
    made = {name: content[name] for name in ("versions", "commit", "device", "threads", "started")}
    whole = {**content["job"], **{part.name: part.attack for part in audit.attacked}, **made}
    return {name: value for name, value in whole.items() if value is not None}


def warnings(audits: Sequence[Audit]) -> list[str]:
    """What the audits found that makes their numbers doubtful, a line each."""
    return [plain(f"{audit.title}, {text}") for audit in tell_apart(audits) for text in list_doubts(audit)]


def headlines(audits: Sequence[Audit], *, threshold: float) -> str:
    """The `finding` of every audit, in Markdown under the table."""
    return "".join(
        f"\n**{escape_markdown(audit.title)}.** {escape_markdown(finding(audit, threshold=threshold))}\n"
        for audit in tell_apart(audits)
    )


def finding(audit: Audit, *, threshold: float) -> str:
    """What the attacks did at worst to each image whose label they kept, and what they did else."""
    worst = audit.worst
    r = worst.records
    if len(set(r.clean.argmax(dim=1).tolist())) == 1 < len(r):
        return (
            "The model gives every clean image the same class: it has collapsed, or the data holds one "
            "class alone. What follows says nothing about robustness."
        )
    told = row(audit.title, worst, threshold=threshold)
    before, after = metrics.confidence(r.clean), metrics.confidence(r.attacked)
    right = int(r.correct.sum())
    needless = int(((r.attacked.amax(dim=1) < threshold) & r.correct).sum())
    return " ".join(
        (
            f"In {worst.name} over all attacks, the label kept, {_describe_move(before, after)}. Of the "
            f"{right} right answers, {needless} ({told['referred_attacked']:.1%}) end below a confidence "
            f"of {threshold:g} ({told['referred']:.1%} before): each is a needless referral.",
            *filter(None, map(_beside, audit.attacked)),
        )
    )


def _beside(part: Attacked) -> str:
    """What an attack did that the worst case does not show: labels lost, a confidence raised."""
    r, name = part.records, plain(part.name, width=WIDTH)
    lost = int((~r.kept).sum())
    before, after = metrics.confidence(r.clean), metrics.confidence(r.attacked)
    if lost:
        return f"{name} changes {lost} of {len(r)} answers, which are lost, not referred."
    return f"Under {name} {_describe_move(before, after)}." if after > before else ""


def _describe_move(before: float, after: float) -> str:
    """The way from one mean confidence to the other, in words that follow the numbers."""
    shown = f"{before:.2f}", f"{after:.2f}"
    if shown[0] == shown[1]:
        return f"the mean confidence stays at {shown[0]}"
    return f"the mean confidence {'falls' if after < before else 'rises'} from {shown[0]} to {shown[1]}"

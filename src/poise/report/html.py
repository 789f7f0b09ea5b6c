"""The report: one self-contained HTML page, the table as Markdown and LaTeX beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from poise import metrics, store
from poise.checks import check_number
from poise.report import figures, tables
from poise.report.escaping import WIDTH, escape_markdown, plain
from poise.report.runs import Attacked, Audit, read_all, told_apart


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
    return write_report(audits, tables.summary(audits, threshold=threshold), out, threshold=threshold)


def write_report(
    audits: Sequence[Audit], table: pl.DataFrame, out: str | Path, *, threshold: float
) -> Path:
    """`report` of audits that are read already, with their summary; the page's path."""
    out = Path(out)
    texts = {
        "report.md": tables.markdown(table) + headlines(audits, threshold=threshold),
        "report.tex": tables.latex(table),
        "report.html": page(audits, table, threshold=threshold),
    }
    with store.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            store.write_text(out / name, text)
    return out / "report.html"


def page(audits: Sequence[Audit], table: pl.DataFrame, *, threshold: float) -> str:
    """The HTML page, everything inside it."""
    environment = Environment(
        loader=PackageLoader("poise.report"), autoescape=True, undefined=StrictUndefined, finalize=_to_text
    )
    return environment.get_template("report.html").render(
        audits=[
            {
                "title": audit.title,
                "content": audit.content,
                "attacked": audit.attacked,
                "warnings": audit.content.get("findings", ()),
                "finding": finding(audit, threshold=threshold),
                "figures": embed_figures(audit),
            }
            for audit in told_apart(audits)
        ],
        heading=tables.HEADING,
        lines=tables.cells(table),
        threshold=threshold,
    )


def _to_text(value: object) -> str:
    """What the page shows of a value: text on one line, a list's items behind one another."""
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def warnings(audits: Sequence[Audit]) -> list[str]:
    """What the audits found that makes their numbers doubtful, a line each."""
    return [
        plain(f"{audit.title}, {found['attack'] or 'model'}: {found['seen']} {found['advice']}")
        for audit in told_apart(audits)
        for found in audit.content.get("findings", ())
    ]


def headlines(audits: Sequence[Audit], *, threshold: float) -> str:
    """The `finding` of every audit, in Markdown under the table."""
    return "".join(
        f"\n**{escape_markdown(audit.title)}.** {escape_markdown(finding(audit, threshold=threshold))}\n"
        for audit in told_apart(audits)
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
    row = tables.row(audit.title, worst, threshold=threshold)
    before, after = metrics.confidence(r.clean), metrics.confidence(r.attacked)
    right = int(r.correct.sum())
    needless = int(((r.attacked.amax(dim=1) < threshold) & r.correct).sum())
    return " ".join(
        (
            f"In {worst.name} over all attacks, the label kept, {_describe_move(before, after)}. Of the "
            f"{right} right answers, {needless} ({row['referred_attacked']:.1%}) end below a confidence of "
            f"{threshold:g} ({row['referred']:.1%} before): each is a needless referral.",
            *(told for part in audit.attacked if (told := _beside(part))),
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


def embed_figures(audit: Audit) -> list[dict[str, str]]:
    """The figures as data URIs, with captions."""
    worst = audit.worst
    shown: list[tuple[figures.Display, str]] = [
        (
            figures.ConfidenceHistogram(worst.records, worst.name),
            f"Confidence of right and wrong answers before, and in {worst.name} over all attacks.",
        ),
        (
            figures.ReliabilityDiagram(worst.records, worst.name),
            "Reliability: accuracy against confidence in 15 bins; a dot's area is its share of the "
            "images, the line its distance from perfect calibration.",
        ),
        (
            figures.Heatmaps(audit),
            "One image, and how each attack changes it, on one colour scale; the number is the confidence.",
        ),
    ]
    return [{"uri": _uri(figures.svg(display)), "caption": caption} for display, caption in shown]


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()

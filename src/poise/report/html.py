"""The report: one self-contained HTML page, the table as Markdown and LaTeX beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from poise import store
from poise.checks import check_number
from poise.report import figures, tables
from poise.report.runs import Audit, read


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
    audits = [read(folder) for folder in runs]
    return write(audits, tables.summary(audits, threshold=threshold), out, threshold=threshold)


def write(audits: Sequence[Audit], table: pl.DataFrame, out: str | Path, *, threshold: float) -> Path:
    """`report` of audits that are read already, with their summary; the page's path."""
    out = Path(out)
    texts = {
        "report.md": tables.markdown(table),
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
        loader=PackageLoader("poise.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        audits=[
            {
                "title": audit.title,
                "content": audit.content,
                "attacked": audit.attacked,
                "strongest": audit.strongest.name,
                "warnings": audit.content.get("findings", ()),
                "finding": finding(audit, threshold=threshold),
                "figures": pictures(audit),
            }
            for audit in audits
        ],
        heading=tables.HEADING,
        lines=tables.cells(table),
        threshold=threshold,
    )


def warnings(audits: Sequence[Audit]) -> list[str]:
    """What the audits found that makes their numbers doubtful, a line each."""
    return [
        f"{audit.title}, {found['attack'] or 'model'}: {found['seen']} {found['advice']}"
        for audit in audits
        for found in audit.content.get("findings", ())
    ]


def finding(audit: Audit, *, threshold: float) -> str:
    """What the strongest attack did, in a sentence or two."""
    attacked = audit.strongest
    answers = set(attacked.records.clean.argmax(dim=1).tolist())
    if len(answers) == 1 < len(attacked.records):
        return (
            "The model gives every clean image the same class: it has collapsed, or the data holds one "
            "class alone. What follows says nothing about robustness."
        )
    row = tables.row(audit.title, attacked, threshold=threshold)
    kept = int(attacked.records.kept.sum())
    return (
        f"Under {attacked.name} the mean confidence falls from {row['confidence']:.2f} to "
        f"{row['confidence_attacked']:.2f}, while {kept} of {len(attacked.records)} answers stay the "
        f"same. Of the right answers, {row['referred_attacked']:.1%} end below a confidence of "
        f"{threshold:g} ({row['referred']:.1%} before): each is a needless referral."
    )


def pictures(audit: Audit) -> list[dict[str, str]]:
    """The figures as data URIs, with captions."""
    attacked = audit.strongest
    shown: list[tuple[figures.Display, str]] = [
        (
            figures.ConfidenceHistogram(attacked.records, attacked.name),
            f"Confidence of right and wrong answers before and after {attacked.name}.",
        ),
        (
            figures.ReliabilityDiagram(attacked.records, attacked.name),
            "Reliability: accuracy against confidence in 15 bins; a dot's area is its share of the "
            "images, the line its distance from perfect calibration.",
        ),
        (
            figures.Heatmaps(audit),
            "One image, and how each attack changes it, on one colour scale; the number is the confidence.",
        ),
    ]
    return [{"uri": _svg(display), "caption": caption} for display, caption in shown]


def _svg(display: figures.Display) -> str:
    stream = io.BytesIO()
    # a fixed salt: the same numbers give the same bytes
    with mpl.rc_context({"svg.hashsalt": "poise", "font.size": 9, "axes.titlesize": 9}):
        display.plot().savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()

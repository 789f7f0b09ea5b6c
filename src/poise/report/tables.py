"""Tables as people read them, in Markdown and LaTeX; and the summary of audits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from poise import metrics
from poise.report import escaping
from poise.report.runs import Attacked, Audit, told_apart


@dataclass(frozen=True)
class Table:
    """A table of texts, written the same way wherever it goes.

    >>> table = Table(["attack", "ECE"], [["a|b", "0.1 ± 0.2"]])
    >>> print(table.markdown())
    | attack | ECE |
    | --- | ---: |
    | a&#124;b | 0.1 ± 0.2 |
    <BLANKLINE>
    """

    heading: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int = 1  # columns at the left that hold words; numbers stand in the others

    @classmethod
    def of(cls, rows: Iterable[Sequence[object]], *, words: int = 1) -> Table:
        """Of rows of values, the first of them the heading; a dash stands for None."""
        heading, *lines = [["-" if value is None else str(value) for value in row] for row in rows]
        return cls(heading, lines, words)

    def markdown(self) -> str:
        """The table in Markdown, every text as it is."""
        first, *rest = [map(escaping.escape_markdown, row) for row in (self.heading, *self.lines)]
        return markdown_rows(list(first), rest, words=self.words)

    def latex(self) -> str:
        """The table in LaTeX, for the booktabs package."""

        def line(texts: Sequence[str]) -> str:
            return " & ".join(map(escaping.escape_latex, texts)) + r" \\" + "\n"

        columns = "l" * self.words + "r" * (len(self.heading) - self.words)
        return (
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(self.heading)}\\midrule\n"
            + "".join(map(line, self.lines))
            + "\\bottomrule\n\\end{tabular}\n"
        )


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


def markdown_rows(heading: Sequence[str], lines: Iterable[Iterable[str]], *, words: int = 1) -> str:
    """A table in Markdown, whose texts are Markdown already; so many columns at the left are words."""
    rule = ["---" if place < words else "---:" for place in range(len(heading))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *lines))


def summary(audits: Sequence[Audit], *, threshold: float = 0.5) -> pl.DataFrame:
    """One row an audit and attack, before and after; audits of one title are told apart in it.

    `referred` is the share of right answers that keep their label at a confidence under the
    threshold: each would be sent to a person for nothing. NaN where no answer is right. `lost` is the
    number of answers, right or wrong, that the attack changes.
    """
    rows = [
        row(audit.title, attacked, threshold=threshold)
        for audit in told_apart(audits)
        for attacked in audit.attacked
    ]
    return pl.DataFrame(rows)


def row(title: str, attacked: Attacked, *, threshold: float) -> dict[str, str | int | float]:
    """One row of `summary`."""
    r = attacked.records
    right = r.correct
    name = escaping.plain(attacked.name, width=escaping.WIDTH)
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

"""The paper's tables with our numbers beside: joined cell by cell, as frames and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from poise.paper import jobs
from poise.paper.jobs import UNDERCONFIDENCE, paper_cells
from poise.paper.looks import Job
from poise.paper.readings import OURS, Reading
from poise.paper.suites import Suite
from poise.report import escaping
from poise.report.tables import markdown_rows

PLACE = ["architecture", "dataset", "defense", "attack", "metric"]  # what names a cell of the paper's


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one of the paper's tables is laid out.

    Args:
        name: of the table, as `poise reproduce` has it.
        title: what it shows.
        table: its number in the paper.
        jobs: those that fill it.
        rows: what names a row.
        columns: (heading, attack or None where rows are attacks, metric).
        digits: decimals.
    """

    name: str
    title: str
    table: str
    jobs: Callable[[Suite, Reading], list[Job]]
    rows: tuple[str, ...]
    columns: tuple[tuple[str, str | None, str], ...]
    digits: int = 3


def _under(metric: str, *attacks: str) -> tuple[tuple[str, str | None, str], ...]:
    return tuple((name if name != "before" else f"{metric} before", name, metric) for name in attacks)


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="table1",
            title="Mean confidence (MSP) before and after underconfidence attacks",
            table="1",
            jobs=jobs.table1,
            rows=("architecture", "dataset"),
            columns=_under("msp", "before", *UNDERCONFIDENCE),
        ),
        Layout(
            name="tableS1",
            title="Accuracy, and ECE before and after underconfidence attacks",
            table="S1",
            jobs=jobs.table1,
            rows=("architecture", "dataset"),
            columns=(("accuracy", "before", "accuracy"), *_under("ece", "before", *UNDERCONFIDENCE)),
        ),
        Layout(
            name="table2",
            title="Size and visibility of perturbations on MNIST",
            table="2",
            jobs=jobs.table2,
            rows=("dataset", "attack"),
            columns=(("ΔW", None, "delta_w"), ("SSIM", None, "ssim")),
            digits=4,
        ),
        Layout(
            name="table3",
            title="Mean confidence (MSP) of defended nets before and after underconfidence attacks",
            table="3",
            jobs=jobs.table3,
            rows=("architecture", "dataset", "defense"),
            columns=_under("msp", "before", *UNDERCONFIDENCE),
        ),
        Layout(
            name="table4",
            title="Accuracy of defended nets before and after PGD",
            table="4",
            jobs=jobs.table3,
            rows=("architecture", "dataset", "defense"),
            columns=_under("accuracy", "before", "PGD"),
        ),
        Layout(
            name="tableS2",
            title="ECE of defended nets before and after attacks",
            table="S2",
            jobs=jobs.table3,
            rows=("architecture", "dataset", "defense"),
            columns=_under("ece", "before", *UNDERCONFIDENCE, "PGD"),
        ),
        Layout(
            name="tableS3",
            title="Inner steps of UAT-Smooth",
            table="S3",
            jobs=jobs.table_s3,
            rows=("architecture", "dataset", "defense"),
            columns=(("accuracy", "before", "accuracy"), *_under("msp", "before", "ConfSmooth")),
        ),
    )
}


def beside(layout: Layout, suite: Suite, found: pl.DataFrame) -> pl.DataFrame:
    """Every cell of the paper's table, and those that only we have, with what we measured.

    Columns: reading, those of PLACE as we name them, theirs (the paper's architecture and data set),
    mean, std, n, images (ours), paper, paper_std, faithful (whether ours is the paper's own setting),
    apart (|difference| in pooled standard deviations over seeds; 0 where both print alike, null where
    either has none, and in Table 2, whose deviations seem to be over images). Of cells that were not
    run, what is ours is null.

    Args:
        layout: of the table.
        suite: whose settings stand for the paper's.
        found: `jobs.cells` of what was measured.
    """
    theirs = (
        paper_cells().filter(table=layout.table).drop("table").rename({"mean": "paper", "std": "paper_std"})
    )
    nets = [job.net for job in layout.jobs(suite, OURS)]
    stands = pl.DataFrame(
        [
            {
                "architecture": s.architecture,
                "dataset": s.dataset,
                "their_architecture": s.published[0],
                "their_dataset": s.published[1],
                "faithful": s.faithful,
            }
            for s in dict.fromkeys(net.setting for net in nets)
        ]
    )
    wanted = pl.any_horizontal(
        (pl.col("metric") == metric)
        & (pl.lit(value=True) if attack is None else pl.col("attack") == attack)
        for _, attack, metric in layout.columns
    )
    ours = found.filter(
        wanted, pl.col("defense").is_in({net.defense for net in nets}), pl.col("attack") != "Auto"
    ).join(stands, on=["architecture", "dataset"])
    names = {"architecture": "their_architecture", "dataset": "their_dataset"}
    on = ["their_architecture", "their_dataset", "defense", "attack", "metric"]
    both = ours.join(theirs.rename(names), on=on, how="full", coalesce=True, maintain_order="right_left")
    pooled = (pl.col("std") ** 2 + pl.col("paper_std") ** 2).sqrt()
    gap = (pl.col("mean") - pl.col("paper")).abs()
    alike = (gap <= 0.5 * 10**-layout.digits) & pooled.is_not_null()
    apart = pl.when(alike).then(0.0).otherwise(gap / pooled)
    return both.with_columns(
        faithful=pl.col("faithful").fill_null(value=False),
        apart=pl.lit(None, dtype=pl.Float64) if layout.table == "2" else apart,
    )


def markdown(layout: Layout, frame: pl.DataFrame) -> str:
    """The table: in each cell ours, and the paper's after a stroke; a dash for what was not run.

    A star at the reading: not the paper's own architecture, data, budgets, or length of training.
    """
    keys = [
        {"architecture": "their_architecture", "dataset": "their_dataset"}.get(r, r) for r in layout.rows
    ]
    heading = [*layout.rows, "reading", "n", *(f"{h}: ours / paper" for h, _, _ in layout.columns)]
    lines = []
    rows = frame.select(*keys, "reading", "architecture", "dataset").unique(maintain_order=True).to_dicts()
    known = {tuple(row[k] for k in keys) for row in rows if row["reading"] is not None}
    for row in rows:
        key = tuple(row[k] for k in keys)
        if row["reading"] is None and key in known:
            continue  # some of its cells only the paper has
        part = frame.filter(
            *(pl.col(k) == row[k] for k in keys),
            pl.col("reading").eq_missing(row["reading"]) | pl.col("reading").is_null(),
        )
        names = [
            escaping.escape_markdown(_name(row, theirs, ours))
            for theirs, ours in zip(keys, layout.rows, strict=True)
        ]
        most = part.select(pl.col("n", "images").max()).to_dicts()[0]
        counts = "-" if most["n"] is None else f"{most['n']} × {most['images']}"
        cells = [_cell(layout, part, attack, metric) for _, attack, metric in layout.columns]
        star = "" if part.filter(pl.col("mean").is_not_null())["faithful"].all() else "*"
        lines.append([*names, f"{row['reading']}{star}" if row["reading"] else "not run", counts, *cells])
    return markdown_rows(heading, lines, words=len(layout.rows) + 1)


def score(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """For each table: the paper's cells, how many were run, in its own setting or by a stand-in.

    Of those in its own setting: how many are judged (both have a standard deviation), and how many
    lie within two pooled standard deviations.
    """
    rows = []
    for name, frame in frames.items():
        theirs = frame.filter(pl.col("paper").is_not_null())
        if LAYOUTS[name].table == "2":  # which cannot have been held to S
            theirs = theirs.filter(pl.col("reading").is_null() | (pl.col("reading") == "unheld"))
        run = theirs.filter(pl.col("mean").is_not_null())
        own = run.filter("faithful")
        rows.append(
            {
                "table": name,
                "cells": paper_cells().filter(table=LAYOUTS[name].table).height,
                "run": own.height,
                "stand-in": run.height - own.height,
                "judged": own["apart"].is_not_null().sum(),
                "within 2 std": (own["apart"] <= 2).sum(),
            }
        )
    return pl.DataFrame(rows)


def _name(row: Mapping[str, str | None], theirs: str, ours: str) -> str:
    """The paper's name, with ours before it where another stands in."""
    mine, paper = row.get(ours), row[theirs]
    if mine is None or paper is None or mine == paper:
        return mine or paper or "-"
    return f"{mine} (for {paper})"


def _cell(layout: Layout, part: pl.DataFrame, attack: str | None, metric: str) -> str:
    chosen = part.filter(metric=metric)
    if attack is not None:
        chosen = chosen.filter(attack=attack)
    if chosen.is_empty():
        return "-"
    row = chosen.sort("mean", nulls_last=True).to_dicts()[0]
    spread = row["spread"] if layout.table == "2" else row["std"]
    ours, theirs = (
        _number(value, std, layout.digits)
        for value, std in ((row["mean"], spread), (row["paper"], row["paper_std"]))
    )
    return f"{ours} / {theirs}"


def _number(value: float | None, std: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")

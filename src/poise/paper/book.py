"""What `poise reproduce` leaves: a page a table and figure, the claims, the scoreboard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from poise import store
from poise.checks import InputError
from poise.paper import jobs, tables
from poise.paper.claims import CLAIMS, REFEREE, judge
from poise.paper.figures import FIGURES
from poise.paper.looks import Job
from poise.paper.nets import Place
from poise.paper.plots import save
from poise.paper.readings import OURS, Reading
from poise.paper.suites import Suite
from poise.paper.tables import LAYOUTS
from poise.report.escaping import code, escape_markdown
from poise.report.tables import Table, markdown_rows

ON = {
    "own": "on the paper's own nets",
    "shortened": "on its nets and data, trained shorter, on fewer images or at other budgets",
    "other net": "on other nets, on its data",
    "other data": "on other data",
}
NEAR = list(ON)[1:]  # stand-ins
UNHELD_TOLD = (
    "\n*unheld*: what the sizes in the paper's Table 2 suggest, PGD and Dropout held to S but not to "
    "[0, 1], Adaptive and ConfSmooth to neither, Dropout's survivors rescaled, the last iterate.\n"
)
TARGETS = (*LAYOUTS, *FIGURES, "claims", "all")


@dataclass(frozen=True, kw_only=True)
class Book:
    """Where pages go, and what their heads say."""

    suite: Suite
    reading: Reading
    place: Place
    folder: Path
    command: str

    def head(self, title: str, shown: Sequence[Job]) -> str:
        """Title, command, and the circumstances in which the jobs shown were run."""
        done = [store.read_job(job.folder(self.place)) for job in shown if job.finished(self.place)]
        ran = {
            "torch": {run["versions"]["torch"] for run in done},
            "Python": {run["versions"]["python"] for run in done},
            "on": {f"{run['device']}, {run['threads']} thread(s)" for run in done},
            "commit": {run["commit"] or "unknown" for run in done},
        }
        told = "; ".join(f"{name} {' and '.join(sorted(values))}" for name, values in ran.items() if values)
        page = store.circumstances()["commit"]
        return (
            f"# {title}\n\n{code(self.command)}. Runs: {told or 'none'}. Page: commit {page}.\n\n"
            f"Reading *{self.reading.name}*: {self.reading.text}.\n"
        )

    def jobs(self, target: str) -> list[Job]:
        """Those of a target."""
        return jobs_of(target, self.suite, self.reading)

    def stem(self, target: str) -> str:
        """Of its files: by the scale, and by the reading where it is not the default."""
        return f"{target}-{self.suite.name}" + ("" if self.reading is OURS else f"-{self.reading.name}")


def jobs_of(target: str, suite: Suite, reading: Reading) -> list[Job]:
    """The jobs that a table, a figure, the claims or everything need."""
    if one := LAYOUTS.get(target) or FIGURES.get(target):
        return one.jobs(suite, reading)
    every = [job for layout in LAYOUTS.values() for job in layout.jobs(suite, reading)]
    return jobs.distinct([*every, *jobs.claims(suite, reading)])


def write(target: str, book: Book) -> list[Path]:
    """Write the pages of a target from what has been run; their paths.

    Raises:
        InputError: a figure whose nets have not been run.
    """
    book.folder.mkdir(parents=True, exist_ok=True)
    if target in FIGURES:
        return [_figure(target, book)]
    found = all_cells(book)
    if target in LAYOUTS:
        return [_table(target, book, found)]
    pages = []
    if target == "all":
        pages += [_table(name, book, found) for name in LAYOUTS]
        for name in FIGURES:
            with suppress(InputError):  # its nets have not been run
                pages.append(_figure(name, book))
    judged = verdicts(book, found)
    return [*pages, _claims(book, judged), _score(book, found, judged)]


def all_cells(book: Book) -> pl.DataFrame:
    """`jobs.cells` of everything in the run folders that this suite and reading have."""
    return jobs.cells(book.jobs("all"), book.place)


def _table(name: str, book: Book, found: pl.DataFrame) -> Path:
    layout = LAYOUTS[name]
    frame = tables.beside(layout, book.suite, found)
    spread = "over images" if layout.table == "2" else "over seeds"
    head = book.head(f"{layout.title} (Table {layout.table})", book.jobs(name))
    told = UNHELD_TOLD if layout.table == "2" else ""
    text = (
        f"{head}\n"
        f"In each cell: ours / the paper's, mean ± standard deviation {spread}. n: seeds × test images. A "
        "dash: not run, or not in the paper. *A (for B)*: A stands in for the paper's B. A star at the "
        "reading: not the paper's own architecture, data, budgets, images or length of training.\n"
        f"{told}\n{tables.markdown(layout, frame)}{_list_collapsed(found)}"
    )
    return _put(book, name, text, frame)


def _list_collapsed(found: pl.DataFrame) -> str:
    """Which nets answer one class for every image; their rows mean nothing."""
    fallen = found.filter(pl.col("metric") == "collapsed", pl.col("mean") > 0)
    rows = fallen.select("architecture", "dataset", "defense", "mean", "n").unique(maintain_order=True)
    told = [
        f"{escape_markdown(a)} on {escape_markdown(d)}, {name} ({mean * n:.0f} of {n})"
        for a, d, name, mean, n in rows.rows()
    ]
    return f"\nCollapsed to one class, here or in another table: {'; '.join(told)}.\n" if told else ""


def _figure(name: str, book: Book) -> Path:
    figure, shown = FIGURES[name], book.jobs(name)
    try:
        if not shown:
            raise InputError("nothing at this scale stands for what it shows")
        display, told = figure.draw(shown, book.place)
    except InputError as error:
        raise InputError(f"{name} needs nets that have not been run: {error}") from error
    stem = book.stem(name)
    save(display, book.folder, stem)
    text = f"{book.head(figure.title, shown)}\n{told}\n\n![{name}]({stem}.svg)\n"
    return _put(book, name, text)


def _claims(book: Book, frame: pl.DataFrame) -> Path:
    groups = (("The paper's claims", CLAIMS), ("What a referee would ask", REFEREE))
    text = book.head("The paper's claims, judged", book.jobs("claims"))
    text += (
        f"{UNHELD_TOLD}Table 2's claims are judged on *unheld*, those on salience on attacks held to S.\n"
    )
    text += (
        "\nEach statement is judged on the cells that were run; *not run* where one that it needs is "
        "missing. *Clear*: the difference that decides exceeds the pooled standard deviation over seeds. "
        "In the last column the verdict of the paper's own tables. A verdict on stand-ins says so and "
        f"says nothing on the paper's own nets: {'; '.join(f'*{of}*: {ON[of]}' for of in NEAR)}.\n"
    )
    theirs = dict(judge((*CLAIMS, *REFEREE), jobs.paper_cells()).select("name", "verdict").rows())
    for title, claims in groups:
        part = frame.filter(pl.col("name").is_in([claim.name for claim in claims]))
        counts = [
            f"{hold} hold and {fail} fail {on}" for on, hold, fail in _count_verdicts(part) if hold + fail
        ]
        counts.append(f"{part.filter(verdict='not run').height} not run")
        lines = []
        for row in part.to_dicts():
            verdict = f"**{row['verdict']}**" + (f" ({row['of']})" if row["of"] in NEAR else "")
            claim, told = (row["statement"], row["section"]), (row["clear"] or "-", row["numbers"])
            theirs_told = escape_markdown(theirs[row["name"]])
            lines.append([*map(escape_markdown, claim), verdict, *map(escape_markdown, told), theirs_told])
        heading = ["claim", "section", "verdict", "clear", "numbers", "in the paper"]
        text += f"\n## {title}\n\n{'; '.join(counts)}.\n\n{markdown_rows(heading, lines, words=6)}"
    return _put(book, "claims", text, frame)


def verdicts(book: Book, found: pl.DataFrame) -> pl.DataFrame:
    """`judge` of all claims, each table's cells marked as such."""
    parts = []
    for layout in LAYOUTS.values():
        frame = tables.beside(layout, book.suite, found).filter(pl.col("mean").is_not_null())
        if layout.table == "2":
            frame = frame.filter(reading="unheld")
        names = ["architecture", "dataset", "defense", "attack", "metric", "mean", "std", "n"]
        parts.append(frame.select(names).with_columns(table=pl.lit(layout.table)))
    named = {metric for layout in LAYOUTS.values() for _, _, metric in layout.columns}
    other = found.filter(
        pl.col("reading") != "unheld", ~pl.col("metric").is_in(named) | (pl.col("attack") == "Auto")
    )
    parts.append(other.select(parts[0].columns[:-1]).with_columns(table=pl.lit("other")))
    every = pl.concat(parts, how="diagonal_relaxed")
    return judge((*CLAIMS, *REFEREE), every.join(_stands(book.suite), on=["architecture", "dataset"]))


def _stands(suite: Suite) -> pl.DataFrame:
    """What each of the suite's nets stands for, and whether it is that itself in all of its settings."""
    rows = [(s.architecture, s.dataset, *s.published, s.faithful) for s in suite.settings()]
    names = ["architecture", "dataset", "of_architecture", "of_dataset", "own"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.group_by(names[:-1], maintain_order=True).agg(pl.col("own").all())


def _count_verdicts(judged: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Where claims were judged, nearest first, and how many hold and fail there."""

    def count(of: str, verdict: str) -> int:
        return judged.filter(of=of, verdict=verdict).height

    return [(where, count(of, "holds"), count(of, "fails")) for of, where in ON.items()]


def _score(book: Book, found: pl.DataFrame, judged: pl.DataFrame) -> Path:
    frames = {name: tables.beside(layout, book.suite, found) for name, layout in LAYOUTS.items()}
    board = tables.score(frames)
    total = board.select(pl.lit("all").alias("table"), pl.exclude("table").sum())
    kinds = [
        {"table": f"claims that {'hold' if verdict == 'holds' else 'fail'}", "cells": judged.height}
        | {
            name: judged.filter(pl.col("of").is_in(of), verdict=verdict).height
            for name, of in (("run", ["own"]), ("stand-in", NEAR))
        }
        for verdict in ("holds", "fails")
    ]
    board = pl.concat([board, total, pl.DataFrame(kinds)], how="diagonal_relaxed")
    text = (
        f"{book.head('Scoreboard', book.jobs('all'))}\n"
        "*run*: cells of the paper measured in its own setting, in whatever reading (of Table 2, "
        "*unheld*); *stand-in*: by another net, other data or shorter training; *judged*: both sides have "
        "a standard deviation over seeds; *within 2 std*: of those, the difference is within two pooled "
        "ones. Last, how many of all claims have which verdict, on the paper's own nets and on stand-ins "
        f"alone; below, by how near these are.\n\n{Table.of([board.columns, *board.rows()]).markdown()}\n"
        f"{Table.of([('claims judged', 'hold', 'fail'), *_count_verdicts(judged)]).markdown()}"
    )
    return _put(book, "scoreboard", text, board)


def _put(book: Book, name: str, text: str, frame: pl.DataFrame | None = None) -> Path:
    """Write a page and its numbers."""
    file = book.folder / f"{book.stem(name)}.md"
    with store.writing(book.folder):
        store.write_text(file, text)
        if frame is not None:
            store.write_text(file.with_suffix(".csv"), frame.write_csv())
            store.write_frame(file.with_suffix(".parquet"), frame)
    return file

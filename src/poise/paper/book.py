"""What `poise reproduce` leaves: a page a table and figure, the claims, the scoreboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from poise import store
from poise.checks import InputError
from poise.paper import cells, jobs, tables
from poise.paper.claims import CLAIMS, REFEREE, judge
from poise.paper.figures import FIGURES, weights
from poise.paper.jobs import Job
from poise.paper.readings import READINGS, Reading
from poise.paper.run import Place, finished
from poise.paper.scale import Scale
from poise.paper.tables import LAYOUTS
from poise.report.escaping import code, markdown
from poise.report.paper_figures import save

FIGURE_JOBS = {
    "figure1": jobs.table2,
    "figure2": jobs.figure2,
    "figureS1": jobs.figure_s1,
    "figureS2": jobs.figure_s1,
}
ON = {
    "own": "on the paper's own nets",
    "shortened": "on its nets and data, trained shorter, on fewer images or at other budgets",
    "other net": "on other nets, on its data",
    "other data": "on other data",
}
NEAR = list(ON)[1:]  # stand-ins
UNHELD = (
    "\n*unheld*: what the sizes in the paper's Table 2 suggest, PGD and Dropout held to S but not to "
    "[0, 1], Adaptive and ConfSmooth to neither, Dropout's survivors rescaled, the last iterate.\n"
)
TARGETS = (*LAYOUTS, *FIGURE_JOBS, "claims", "all")


@dataclass(frozen=True, kw_only=True)
class Book:
    """Where pages go, and what their heads say."""

    scale: Scale
    reading: Reading
    place: Place
    folder: Path
    command: str

    def head(self, title: str, shown: Sequence[Job]) -> str:
        """Title, command, and the circumstances in which the jobs shown were run."""
        done = [store.read_job(self.place.look(job)) for job in shown if finished(job, self.place)]
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
            f"Reading *{self.reading}*: {READINGS[self.reading]}.\n"
        )


def jobs_of(target: str, scale: Scale, reading: Reading) -> list[Job]:
    """The jobs that a table, a figure, the claims or everything need."""
    if target in LAYOUTS:
        return LAYOUTS[target].recipe(scale, reading)
    if target in FIGURE_JOBS:
        return FIGURE_JOBS[target](scale, reading)
    every = [job for layout in LAYOUTS.values() for job in layout.recipe(scale, reading)]
    return jobs.distinct([*every, *jobs.referee(scale, reading)])


def write(target: str, book: Book) -> list[Path]:
    """Write the pages of a target from what has been run; their paths.

    Raises:
        InputError: a figure whose nets have not been run.
    """
    book.folder.mkdir(parents=True, exist_ok=True)
    names = [*LAYOUTS, *FIGURE_JOBS] if target in ("claims", "all") else [target]
    found = measured(book)
    pages = [_table(name, book, found) for name in names if name in LAYOUTS and target != "claims"]
    pages += [
        page
        for name in names
        if name in FIGURE_JOBS
        and target != "claims"
        and (page := _figure(name, book, strict=target == name))
    ]
    if target not in ("claims", "all"):
        return pages
    judged = verdicts(book, found)
    return [*pages, _claims(book, judged), _score(book, found, judged)]


def measured(book: Book) -> pl.DataFrame:
    """`cells.summary` of everything in the run folders that this scale and reading have."""
    return cells.summary(cells.cells(jobs_of("all", book.scale, book.reading), book.place))


def _table(name: str, book: Book, found: pl.DataFrame) -> Path:
    layout = LAYOUTS[name]
    frame = tables.beside(layout, book.scale, found)
    spread = "over images" if layout.table == "2" else "over seeds"
    head = book.head(f"{layout.title} (Table {layout.table})", layout.recipe(book.scale, book.reading))
    told = UNHELD if layout.table == "2" else ""
    text = (
        f"{head}\n"
        f"In each cell: ours / the paper's, mean ± standard deviation {spread}. n: seeds × test images. A "
        "dash: not run, or not in the paper. *A (for B)*: A stands in for the paper's B. A star at the "
        "reading: not the paper's own architecture, data, budgets, images or length of training.\n"
        f"{told}\n{tables.markdown(layout, frame)}{_collapsed(found)}"
    )
    return _put(book, name, text, frame)


def _collapsed(found: pl.DataFrame) -> str:
    """Which nets answer one class for every image; their rows mean nothing."""
    fallen = found.filter(pl.col("metric") == "collapsed", pl.col("mean") > 0)
    rows = fallen.select("architecture", "dataset", "defense", "mean", "n").unique(maintain_order=True)
    told = [
        f"{markdown(a)} on {markdown(d)}, {name} ({mean * n:.0f} of {n})"
        for a, d, name, mean, n in rows.rows()
    ]
    return f"\nCollapsed to one class, here or in another table: {'; '.join(told)}.\n" if told else ""


def _figure(name: str, book: Book, *, strict: bool) -> Path | None:
    try:
        display, told = FIGURES[name](book.scale, book.reading, book.place)
    except (InputError, IndexError) as error:
        if not strict:
            return None
        raise InputError(f"{name} needs nets that have not been run: {error}") from error
    stem = _stem(book, name)
    save(display, book.folder, stem)
    doc = FIGURES[name].__doc__ or ""
    head = book.head(doc.splitlines()[0].rstrip("."), FIGURE_JOBS[name](book.scale, book.reading))
    text = f"{head}\n{told}\n\n![{name}]({stem}.svg)\n"
    return _put(book, name, text)


def _claims(book: Book, frame: pl.DataFrame) -> Path:
    groups = (("The paper's claims", CLAIMS), ("What a referee would ask", REFEREE))
    text = book.head("The paper's claims, judged", jobs_of("claims", book.scale, book.reading))
    text += f"{UNHELD}Table 2's claims are judged on *unheld*, those on salience on attacks held to S.\n"
    text += (
        "\nEach statement is judged on the cells that were run; *not run* where one that it needs is "
        "missing. *Clear*: the difference that decides exceeds the pooled standard deviation over seeds. "
        "In the last column the verdict of the paper's own tables. A verdict on stand-ins says so and "
        f"says nothing on the paper's own nets: {'; '.join(f'*{of}*: {ON[of]}' for of in NEAR)}.\n"
    )
    theirs = dict(judge((*CLAIMS, *REFEREE), cells.published()).select("name", "verdict").rows())
    for title, claims in groups:
        part = frame.filter(pl.col("name").is_in([claim.name for claim in claims]))
        text += (
            f"\n## {title}\n\n{_counted(part)}.\n\n"
            "| claim | section | verdict | clear | numbers | in the paper |\n"
        )
        text += "| --- | --- | --- | --- | --- | --- |\n"
        for row in part.to_dicts():
            verdict = f"**{row['verdict']}**" + (f" ({row['of']})" if row["of"] in NEAR else "")
            told = (row["clear"] or "-", row["numbers"], theirs[row["name"]])
            line = (*map(markdown, (row["statement"], row["section"])), verdict, *map(markdown, told))
            text += f"| {' | '.join(line)} |\n"
    return _put(book, "claims", text, frame)


def verdicts(book: Book, found: pl.DataFrame) -> pl.DataFrame:
    """`judge` of all claims, each table's cells marked as such."""
    parts = []
    for layout in LAYOUTS.values():
        frame = tables.beside(layout, book.scale, found).filter(pl.col("mean").is_not_null())
        if layout.table == "2":
            frame = frame.filter(reading="unheld")
        names = ["architecture", "dataset", "defense", "attack", "metric", "mean", "std", "n"]
        parts.append(frame.select(names).with_columns(table=pl.lit(layout.table)))
    named = {metric for layout in LAYOUTS.values() for _, _, metric in layout.columns}
    other = found.filter(
        pl.col("reading") != "unheld", ~pl.col("metric").is_in(named) | (pl.col("attack") == "Auto")
    )
    parts.append(other.select(parts[0].columns[:-1]).with_columns(table=pl.lit("other")))
    parts.append(_weighed(book))
    every = pl.concat(parts, how="diagonal_relaxed")
    return judge((*CLAIMS, *REFEREE), every.join(_stands(book.scale), on=["architecture", "dataset"]))


def _stands(scale: Scale) -> pl.DataFrame:
    """What each of the scale's nets stands for, and whether it is that itself in all of its settings."""
    rows = [(s.architecture, s.dataset, *s.published, s.faithful) for s in scale.settings()]
    names = ["architecture", "dataset", "of_architecture", "of_dataset", "own"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.group_by(names[:-1], maintain_order=True).agg(pl.col("own").all())


def _counted(judged: pl.DataFrame) -> str:
    """How many verdicts there are of each kind, those on stand-ins apart, by how near these are."""
    told = []
    for of, where in ON.items():
        counts = dict(judged.filter(of=of)["verdict"].value_counts().rows())
        told += [f"{counts.get('holds', 0)} hold and {counts.get('fails', 0)} fail {where}"] * bool(counts)
    idle = judged.filter(verdict="not run").height
    return "; ".join([*told, f"{idle} not run"])


def _weighed(book: Book) -> pl.DataFrame:
    """The cells `salience` of Table 2's nets, mean over images, then over seeds."""
    rows = []
    for job in jobs.table2(book.scale, book.reading):
        if job.look != "attacked" or not finished(job, book.place):
            continue
        file = book.place.look(job) / "salience.parquet"
        if not file.exists():
            with store.writing(file.parent):
                store.write_frame(file, weights(job, book.place))
        means = pl.read_parquet(file).group_by("attack", maintain_order=True).agg(pl.col("salient").mean())
        rows += [
            (job.setting.architecture, job.setting.dataset, "Vanilla", attack, "salience", mean, job.seed)
            for attack, mean in means.rows()
        ]
    names = ["architecture", "dataset", "defense", "attack", "metric", "mean", "seed"]
    kinds = dict(zip(names, [pl.String] * 5 + [pl.Float64, pl.Int64], strict=True))
    frame = pl.DataFrame(rows, schema=kinds, orient="row")
    spread = {"mean": pl.col("mean").mean(), "std": pl.col("mean").std(), "n": pl.len()}
    return frame.group_by(names[:5], maintain_order=True).agg(**spread).with_columns(table=pl.lit("2"))


def _score(book: Book, found: pl.DataFrame, judged: pl.DataFrame) -> Path:
    frames = {name: tables.beside(layout, book.scale, found) for name, layout in LAYOUTS.items()}
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
        f"{book.head('Scoreboard', jobs_of('all', book.scale, book.reading))}\n"
        "*run*: cells of the paper measured in its own setting, in whatever reading (of Table 2, "
        "*unheld*); *stand-in*: by another net, other data or shorter training; *judged*: both sides have "
        "a standard deviation over seeds; *within 2 std*: of those, the difference is within two pooled "
        "ones. Last, how many of all claims have which verdict, on the paper's own nets and on stand-ins "
        f"alone.\n\n{_markdown(board)}\n"
        f"Claims: {_counted(judged)}.\n"
    )
    return _put(book, "scoreboard", text, board)


def _markdown(frame: pl.DataFrame) -> str:
    lines: Sequence[Sequence[object]] = (frame.columns, ["---"] * frame.width, *frame.rows())
    shown = (["-" if entry is None else str(entry) for entry in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def _stem(book: Book, name: str) -> str:
    return f"{name}-{book.scale.name}" + ("" if book.reading == "ours" else f"-{book.reading}")


def _put(book: Book, name: str, text: str, frame: pl.DataFrame | None = None) -> Path:
    """The page and its numbers, named by scale, and by reading where it is not the default."""
    file = book.folder / f"{_stem(book, name)}.md"
    with store.writing(book.folder):
        store.write_text(file, text)
        if frame is not None:
            store.write_text(file.with_suffix(".csv"), frame.write_csv())
            store.write_frame(file.with_suffix(".parquet"), frame)
    return file

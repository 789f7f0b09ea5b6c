"""Cells: every number that was measured, by the names of the paper's tables, and the paper's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple

import polars as pl

from poise import metrics, store
from poise.paper.jobs import Job
from poise.paper.run import Place, finished
from poise.report import read

SCHEMA = {
    "reading": pl.String,  # of the attacks; "unheld" for Table 2's other one
    "architecture": pl.String,
    "dataset": pl.String,
    "defense": pl.String,
    "attack": pl.String,  # "before" for none
    "metric": pl.String,
    "seed": pl.Int64,
    "value": pl.Float64,  # mean over the images
    "spread": pl.Float64,  # standard deviation over the images, where each has a number of its own
    "images": pl.Int64,
}
NAMES = ["reading", "architecture", "dataset", "defense", "attack", "metric"]
HONEST = {  # of `poise compare`: column -> (attack, metric) of the cell
    "raw": ("Auto", "raw"),
    "at_k": ("Auto", "at_k"),
    "matched": ("Auto", "matched"),
    "after_auto": ("Auto", "msp_referee"),  # on other images than the tables' attacks
    "after_dropout": ("Dropout", "msp_referee"),
    "after_adaptive": ("Adaptive", "msp_referee"),
    "after_confsmooth": ("ConfSmooth", "msp_referee"),
    "k": ("before", "k"),
    "stable": ("PGD", "stable"),
    "bound": ("PGD", "bound"),
}


def published() -> pl.DataFrame:
    """The paper's 389 numbers: table, architecture, dataset, defense, attack, metric, mean, std."""
    text = files("poise.paper").joinpath("published.csv").read_bytes()
    return pl.read_csv(text, schema_overrides={"table": pl.String, "mean": pl.Float64, "std": pl.Float64})


def cells(jobs: Sequence[Job], place: Place) -> pl.DataFrame:
    """What the finished ones of these jobs found, a row a number and seed."""
    rows = [row for job in jobs for row in _of[job.look](job, place)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").unique(maintain_order=True)


def summary(found: pl.DataFrame) -> pl.DataFrame:
    """Mean, standard deviation over the seeds (null for one), and their number n, of every cell."""
    return found.group_by(NAMES, maintain_order=True).agg(
        mean=pl.col("value").mean(),
        std=pl.col("value").std(),
        n=pl.len(),
        spread=pl.col("spread").mean(),
        images=pl.col("images").max(),
    )


class Cell(NamedTuple):
    """One number of one net."""

    reading: str
    architecture: str
    dataset: str
    defense: str
    attack: str
    metric: str
    seed: int
    value: float
    spread: float | None
    images: int


def _cell(
    job: Job, attack: str, metric: str, value: float, images: int, spread: float | None = None
) -> Cell:
    s, reading = job.setting, "unheld" if job.look == "unheld" else job.reading
    return Cell(
        reading, s.architecture, s.dataset, job.defense, attack, metric, job.seed, value, spread, images
    )


def _attacked(job: Job, place: Place) -> Iterator[Cell]:
    folder = place.look(job)
    if not finished(job, place):
        return
    fallen = job.train is not None and store.read_job(place.net(job)).get("collapsed", False)
    yield _cell(job, "before", "collapsed", float(fallen), 0)
    audit = read(folder)
    first = audit.attacked[0].records
    stages = [
        ("before", first, first.clean),
        *((a.name, a.records, a.records.attacked) for a in audit.attacked),
    ]
    for name, r, probs in stages:
        for metric, measure in PROBABILITIES.items():
            yield _cell(job, name, metric, measure(probs, r.y), len(r))
        for metric, chosen in (("msp_right", r.correct), ("msp_wrong", ~r.correct)):  # Figure 2
            if chosen.any():
                yield _cell(job, name, metric, metrics.confidence(probs[chosen]), int(chosen.sum()))
    for part in audit.attacked:
        r = part.records
        distances = {"delta_w": r.wasserstein.double(), "ssim": r.ssim.double(), "kept": r.kept.double()}
        for metric, values in distances.items():
            spread = float(values.std(correction=0))
            yield _cell(job, part.name, metric, float(values.mean()), len(r), spread)


def _unheld(job: Job, place: Place) -> Iterator[Cell]:
    file = place.look(job) / "distances.parquet"
    if not file.exists():
        return
    for (attack,), part in pl.read_parquet(file).group_by("attack", maintain_order=True):
        for metric in ("delta_w", "ssim", "linf", "kept"):
            values = part[metric].cast(pl.Float64).to_numpy()
            mean, spread = float(values.mean()), float(values.std())
            yield _cell(job, str(attack), metric, mean, len(part), spread)


def _referee(job: Job, place: Place) -> Iterator[Cell]:
    file = place.look(job) / "comparison.parquet"
    if not file.exists():
        return
    row = pl.read_parquet(file).to_dicts()[0]
    for column, (attack, metric) in HONEST.items():
        if row[column] is not None:
            yield _cell(job, attack, metric, float(row[column]), job.setting.test or 0)


PROBABILITIES: dict[str, Callable[..., float]] = {
    "msp": lambda probs, y: metrics.confidence(probs),
    "accuracy": metrics.accuracy,
    "ece": metrics.ece,
    "above_half": lambda probs, y: float((probs.max(dim=1).values >= 0.5).double().mean()),  # section 5.1
}
_of = {"attacked": _attacked, "unheld": _unheld, "referee": _referee}

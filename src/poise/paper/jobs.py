"""The jobs that the paper's tables and figures need; running them, and the numbers that they found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

import polars as pl

from poise.checks import InputError
from poise.paper.looks import AUDITED, REFEREED, UNHELD, WEIGHED, Job
from poise.paper.nets import PaperNet, Place
from poise.paper.readings import Reading
from poise.paper.suites import Setting, Suite
from poise.progress import Progress, silent

DEFENDED = ("Vanilla", "AT", "TRADES", "RobustAugMix", "CAAT", "UAT-Gap", "UAT-Smooth")
REFEREES = ("AT-5", "UAT-Smooth (unprojected)")  # what the paper's defenses should be held against
UNDERCONFIDENCE = ("Dropout", "Adaptive", "ConfSmooth")  # the underconfidence attacks
COUNTS = (1, 3, 5, 7, 10)  # Table S3's inner steps


def table1(suite: Suite, reading: Reading) -> list[Job]:
    """Confidence before and after three attacks, by architecture and data set (Tables 1 and S1)."""
    return [
        job
        for setting in suite.transfer
        for job in _audits([setting], ["Vanilla"], 1 if setting.as_is else suite.seeds, reading)
    ]


def table2(suite: Suite, reading: Reading) -> list[Job]:
    """ΔW and SSIM of four attacks on MNIST (Table 2), held to S and not."""
    audits = _audits([suite.magnitude], ["Vanilla"], suite.seeds, reading)
    return [Job(job.net, look) for job in audits for look in (AUDITED, UNHELD)]


def table3(suite: Suite, reading: Reading) -> list[Job]:
    """Seven defenses under every attack (Tables 3, 4 and S2), and two to hold them against."""
    return _audits(suite.defended, DEFENDED + REFEREES, suite.seeds, reading)


def table_s3(suite: Suite, reading: Reading) -> list[Job]:
    """UAT-Smooth trained with 1 to 10 inner steps (Table S3)."""
    return _audits([suite.counted], [f"UAT-Smooth-{steps}" for steps in COUNTS], suite.seeds, reading)


def figure1(suite: Suite, reading: Reading) -> list[Job]:
    """The first net of Table 2 (Figure 1)."""
    return _audits([suite.magnitude], ["Vanilla"], 1, reading)


def figure2(suite: Suite, reading: Reading) -> list[Job]:
    """The first nets of Table 3 with three defenses (Figure 2)."""
    return _audits(suite.defended[-1:], ["Vanilla", "CAAT", "UAT-Smooth"], 1, reading)


def figure_s1(suite: Suite, reading: Reading) -> list[Job]:
    """The net of Table 1 on chest X-rays (Figures S1 and S2)."""
    chest = [s for s in suite.transfer if s.published == ("EfficientNet-B0", "Chest X-ray")]
    return _audits(chest, ["Vanilla"], 1, reading)


def claims(suite: Suite, reading: Reading) -> list[Job]:
    """What no table shows: where Table 2's perturbations fall, and the nets of Tables 3 and S3 again.

    The latter in numbers that the logits' scale cannot improve unseen.
    """
    nets = (*table3(suite, reading), *table_s3(suite, reading))
    weighed = _audits([suite.magnitude], ["Vanilla"], suite.seeds, reading)
    return [*(Job(job.net, WEIGHED) for job in weighed), *(Job(job.net, REFEREED) for job in nets)]


def _audits(
    settings: Iterable[Setting], defenses: Sequence[str], seeds: int, reading: Reading
) -> list[Job]:
    return [
        Job(PaperNet(setting=setting, defense=name, seed=seed, reading=reading), AUDITED)
        for setting in settings
        for seed in range(seeds)
        for name in defenses
    ]


def run(jobs: Sequence[Job], place: Place, *, progress: Progress = silent) -> list[str]:
    """Do every job that is not done, in order; the same call again goes on after the last one.

    A job that cannot be done, because its data or weights are not there, does not keep the others
    from theirs: what it says is returned, each reason once.
    """
    failed: dict[str, None] = {}
    for done, job in enumerate(jobs):
        progress("jobs", done, len(jobs), job.name)
        try:
            job.run(place, progress)
        except InputError as error:
            failed[str(error)] = None
    progress("jobs", len(jobs), len(jobs))
    return list(failed)


def share(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """Every so many-th net's jobs, for one of several processes; no net is in two shares."""
    nets = list(dict.fromkeys(job.net.name for job in jobs))
    mine = set(nets[part::parts])
    return [job for job in jobs if job.net.name in mine]


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """The jobs without repetitions, in order."""
    return list({job.name: job for job in jobs}.values())


_CELL = {
    "reading": pl.String,  # of the attacks; "unheld" for Table 2's other one
    "architecture": pl.String,
    "dataset": pl.String,
    "defense": pl.String,
    "attack": pl.String,
    "metric": pl.String,
    "seed": pl.Int64,
    "value": pl.Float64,
    "images": pl.Int64,
    "spread": pl.Float64,
}


def cells(jobs: Iterable[Job], place: Place) -> pl.DataFrame:
    """What the finished ones of these jobs found: every cell's mean over the seeds.

    Columns: reading, architecture, dataset, defense, attack, metric; mean, std (over the seeds, null for
    one), n (how many), spread (over the images, mean of the seeds'), images (the most).
    """
    rows = []
    for job in jobs:
        net, s = job.net, job.net.setting
        named = (job.look.reading or net.reading.name, s.architecture, s.dataset, net.defense)
        rows += [(*named, c.attack, c.metric, net.seed, *c[2:]) for c in job.cells(place)]
    frame = pl.DataFrame(rows, schema=_CELL, orient="row").unique(maintain_order=True)
    return frame.group_by(list(_CELL)[:6], maintain_order=True).agg(
        mean=pl.col("value").mean(),
        std=pl.col("value").std(),
        n=pl.len(),
        spread=pl.col("spread").mean(),
        images=pl.col("images").max(),
    )


def paper_cells() -> pl.DataFrame:
    """The paper's 389 numbers: table, architecture, dataset, defense, attack, metric, mean, std."""
    text = files("poise.paper").joinpath("published.csv").read_bytes()
    return pl.read_csv(text, schema_overrides={"table": pl.String, "mean": pl.Float64, "std": pl.Float64})

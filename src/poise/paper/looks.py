"""Looks at a net, each one value: what it runs, what it leaves, the numbers in that, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch

from poise import data, metrics, store
from poise.attacks import Attack, run
from poise.auditing.audit import audit
from poise.auditing.timing import passes
from poise.devices import sharing
from poise.fast import eager
from poise.labels import as_in
from poise.metrics.perturbation import structural_similarity
from poise.modes import ask, evaluating
from poise.paper.nets import PaperNet, Place, folder_name
from poise.paper.readings import OURS, Reading, attacks_of, unheld
from poise.paper.referee import referee
from poise.paper.salience import random_signs, salience
from poise.paper.suites import Setting
from poise.progress import Progress
from poise.report import read

_FIRST = 500  # images on which perturbations are weighed against saliency


class Cell(NamedTuple):
    """One number of a net: mean over so many images; their spread where each has a number of its own."""

    attack: str  # "before" for none
    metric: str
    value: float
    images: int
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One way to look at a net.

    Args:
        name: in folders' names.
        attacks: what the net is attacked by, by the paper's names.
        file: what it leaves last in the job's folder; one a folder of each attack where the name has {}.
        take: do it, on a net that is trained.
        cells: the numbers in what it left.
        forwards: images sent through the net, for so many test images.
        reading: what cells have for the reading, where it is not that of the net.
    """

    name: str
    attacks: Callable[[Setting, Reading], Mapping[str, Attack]] = attacks_of
    file: str
    take: Callable[[Job, Place, Progress], None]
    cells: Callable[[Job, Place], Iterator[Cell]]
    forwards: Callable[[Job, int], int]
    reading: str | None = None


@dataclass(frozen=True)
class Job:
    """One net, and one look at it."""

    net: PaperNet
    look: Measurement

    @property
    def attacks(self) -> Mapping[str, Attack]:
        """What the net is attacked by, by the paper's names."""
        return self.look.attacks(self.net.setting, self.net.reading)

    @property
    def name(self) -> str:
        """Its folder's."""
        net, look = self.net, self.look.name
        attacks = repr(self.attacks).replace(", layout='auto'", "")  # came later: counts if it is named
        facts = {"net": net.name, "test": net.setting.test, "attacks": attacks, "look": look}
        s = net.setting
        return folder_name(s.architecture, s.dataset, net.defense, net.seed, look, facts=facts)

    def folder(self, place: Place) -> Path:
        """Where it leaves what it found."""
        return place.out / "looked" / self.name

    def finished(self, place: Place) -> bool:
        """Whether all that it leaves is there."""
        folder = self.folder(place)
        return all((folder / self.look.file.format(name)).exists() for name in self.attacks)

    def run(self, place: Place, progress: Progress) -> None:
        """Train the net and look at it, whatever of that is to do."""
        self.net.train(place, progress)
        if not self.finished(place):
            self.look.take(self, place, progress)

    def cells(self, place: Place) -> Iterator[Cell]:
        """What it found, nothing before it is finished."""
        if self.finished(place):
            yield from self.look.cells(self, place)


# The audit: each image's records under the four attacks.


def _audit(job: Job, place: Place, progress: Progress) -> None:
    net, s = job.net, job.net.setting
    own = net.job is None
    audit(
        s.job.model if own else str(net.folder(place)),
        net.images("test", place),
        job.attacks,
        job.folder(place),
        weights=s.job.weights if own else None,
        code=None if own else s.job.model,
        seed=net.seed,
        probe=0,
        progress=progress,
    )


def _audit_cells(job: Job, place: Place) -> Iterator[Cell]:
    net = job.net
    fallen = net.job is not None and store.read_job(net.folder(place)).get("collapsed", False)
    yield Cell("before", "collapsed", float(fallen), 0)
    attacked = read(job.folder(place)).attacked
    first = attacked[0].records
    for name, r, probs in (
        ("before", first, first.clean),
        *((part.name, part.records, part.records.attacked) for part in attacked),
    ):
        for metric, measure in PROBABILITIES.items():
            yield Cell(name, metric, measure(probs, r.y), len(r))
        for metric, chosen in (("msp_right", r.correct), ("msp_wrong", ~r.correct)):  # Figure 2
            if chosen.any():
                yield Cell(name, metric, metrics.confidence(probs[chosen]), int(chosen.sum()))
    for part in attacked:
        r = part.records
        distances = {"delta_w": r.wasserstein.double(), "ssim": r.ssim.double(), "kept": r.kept.double()}
        for metric, values in distances.items():
            spread = float(values.std(correction=0))
            yield Cell(part.name, metric, float(values.mean()), len(r), spread)


def _count_forwards(job: Job, images: int) -> int:
    """Forwards under each attack, and the judge's two."""

    def of(attack: Attack) -> int:
        return passes(lambda net, x, y: run(eager(attack), net, x, y))[0] + 2

    return images * sum(map(of, job.attacks.values()))


PROBABILITIES: dict[str, Callable[..., float]] = {
    "msp": lambda probs, y: metrics.confidence(probs),
    "accuracy": metrics.accuracy,
    "ece": metrics.ece,
    "above_half": lambda probs, y: float((probs.max(dim=1).values >= 0.5).double().mean()),  # section 5.1
}
AUDITED = Measurement(
    name="attacked", file="{}/records.parquet", take=_audit, cells=_audit_cells, forwards=_count_forwards
)

# Table 2's other reading: ΔW and SSIM of attacks that leave [0, 1], which no audit accepts.


def _open(job: Job, place: Place) -> tuple[torch.nn.Module, torch.device]:
    """The net, and the run's folder with its circumstances."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {"kind": job.look.name, "net": job.net.name, "attacks": repr(job.attacks)}
    store.open_run(job.folder(place), own, device=device)
    return job.net.load(place).to(device), device


def _leave(job: Job, place: Place, frame: pl.DataFrame) -> None:
    with store.writing(job.folder(place)):
        store.write_frame(job.folder(place) / job.look.file, frame)


def _distances(job: Job, place: Place, progress: Progress) -> None:
    net, device = _open(job, place)
    test, rows = as_in(net, job.net.images("test", place)), list[pl.DataFrame]()
    for name, attack in job.attacks.items():
        done = 0
        for x, y in test:
            x = x.to(device)
            x_adv = run(attack, net, x, y)
            with evaluating(net), torch.no_grad():
                kept = ask(net, x_adv).argmax(dim=1) == ask(net, x).argmax(dim=1)
            away = (x_adv - x).abs().flatten(1)
            columns = {
                "delta_w": away.mean(dim=1),
                "ssim": structural_similarity(x_adv, x),
                "linf": away.amax(dim=1),
                "kept": kept,
            }
            numbers = {key: value.cpu().numpy() for key, value in columns.items()}
            rows.append(pl.DataFrame({"attack": [name] * len(x), **numbers}))
            done += len(x)
            progress(name, done, len(test))
    _leave(job, place, pl.concat(rows))


def _distance_cells(job: Job, place: Place) -> Iterator[Cell]:
    frame = pl.read_parquet(job.folder(place) / job.look.file)
    for (attack,), part in frame.group_by("attack", maintain_order=True):
        for metric in ("delta_w", "ssim", "linf", "kept"):
            values = part[metric].cast(pl.Float64).to_numpy()
            yield Cell(str(attack), metric, float(values.mean()), len(part), float(values.std()))


UNHELD = Measurement(
    name="unheld",
    attacks=lambda setting, reading: unheld(setting),
    file="distances.parquet",
    take=_distances,
    cells=_distance_cells,
    forwards=_count_forwards,
    reading="unheld",
)

# Where perturbations fall: on pixels that matter, or not; "chance" for random signs.


def _weigh(job: Job, place: Place, progress: Progress) -> None:
    net, device = _open(job, place)
    x, y = next(iter(as_in(net, job.net.images("test", place)).batched(_FIRST)))
    x = x.to(device)
    changed = {name: run(attack, net, x, y) for name, attack in job.attacks.items()}
    changed["chance"] = random_signs(x, eps=job.net.setting.eps)
    _leave(job, place, salience(net, x, changed))


def _salience_cells(job: Job, place: Place) -> Iterator[Cell]:
    frame = pl.read_parquet(job.folder(place) / job.look.file)
    means = frame.group_by("attack", maintain_order=True).agg(pl.col("salient").mean(), pl.len())
    for attack, mean, images in means.rows():
        yield Cell(attack, "salience", mean, images)


WEIGHED = Measurement(
    name="salience",
    file="salience.parquet",
    take=_weigh,
    cells=_salience_cells,
    forwards=lambda job, images: _count_forwards(job, min(images, _FIRST)),
)

# What a referee would ask, the scales fitted on test images that are not attacked here.

HONEST = {  # its column -> (attack, metric) of the cell
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


def _referee(job: Job, place: Place, progress: Progress) -> None:
    s = job.net.setting
    model, _ = _open(job, place)
    test = as_in(model, data.load(s.job.data, split="test", root=place.root, batch_size=s.batch_size))
    held, rest = test.divide(min(place.held, len(test) // 2))
    rest = rest.subset(min(s.test or len(rest), len(rest)))
    found = referee(model, rest, held, eps=s.eps, steps=s.steps, devices=[sharing().device])
    _leave(job, place, pl.DataFrame([found], infer_schema_length=None))


def _referee_cells(job: Job, place: Place) -> Iterator[Cell]:
    row = pl.read_parquet(job.folder(place) / job.look.file).to_dicts()[0]
    for column, (attack, metric) in HONEST.items():
        if row[column] is not None:
            yield Cell(attack, metric, float(row[column]), job.net.setting.test or 0)


REFEREED = Measurement(
    name="referee",
    attacks=lambda setting, reading: attacks_of(setting, OURS),
    file="comparison.parquet",
    take=_referee,
    cells=_referee_cells,
    # four attacks, and `auto`, with five more forwards, thrice
    forwards=lambda job, images: images * (7 * (job.net.setting.steps + 3) + 3 * 5),
)

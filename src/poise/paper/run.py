"""Running jobs: a net trained or found, then looked at; what is there is not done again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from torch import nn

from poise import data, models, store, training
from poise.auditing.audit import audit
from poise.auditing.comparison import compare
from poise.checks import InputError
from poise.data import ImageSet
from poise.labels import as_in
from poise.metrics.perturbation import structural_similarity
from poise.modes import ask, evaluating
from poise.paper.jobs import Job
from poise.paper.scale import Setting
from poise.preparation import Preparation
from poise.progress import Progress, silent


class Place(NamedTuple):
    """Where runs go and data lie."""

    out: Path
    root: Path
    held: int = 1000

    def net(self, job: Job) -> Path:
        """The folder of the job's net."""
        return self.out / "trained" / job.trained

    def look(self, job: Job) -> Path:
        """The folder of what the look found."""
        return self.out / "looked" / job.looked


def run(jobs: Sequence[Job], place: Place, *, progress: Progress = silent) -> list[str]:
    """Do every job that is not done, in order; the same call again goes on after the last one.

    A job that cannot be done, because its data or weights are not there, does not keep the others
    from theirs: what it says is returned, each reason once.
    """
    failed: dict[str, None] = {}
    for done, job in enumerate(jobs):
        progress("jobs", done, len(jobs), job.looked)
        try:
            _train(job, place, progress)
            {"attacked": _attack, "unheld": _unheld, "referee": _referee}[job.look](job, place, progress)
        except InputError as error:
            failed[str(error)] = None
    progress("jobs", len(jobs), len(jobs))
    return list(failed)


def finished(job: Job, place: Place) -> bool:
    """Whether all that the job's look leaves is there."""
    names = {"unheld": ["distances.parquet"], "referee": ["comparison.parquet"]}.get(
        job.look, [f"{name}/records.parquet" for name in job.attacks]
    )
    return all((place.look(job) / name).exists() for name in names)


def images(setting: Setting, split: str, place: Place, *, seed: int = 0) -> ImageSet:
    """The setting's images of that split."""
    count = setting.train if split == "train" else setting.test
    return data.load(
        setting.data,
        split="train" if split == "train" else "test",
        images=count,
        seed=seed,
        batch_size=setting.batch_size,
        root=place.root,
        preparation=Preparation(
            size=setting.size,
            channels="rgb" if setting.size else None,
            allow_empty=setting.data == "imagenet",  # a sample may lack classes
        ),
    )


def net_of(job: Job, place: Place) -> nn.Module:
    """The job's net, trained before or taken as it is."""
    if job.train is not None:
        return training.load(place.net(job), code=job.train.model)
    test = images(job.setting, "test", place)
    s = job.setting
    return models.load(s.model, classes=len(test.classes), shape=test.shape, weights=s.weights)


def _train(job: Job, place: Place, progress: Progress) -> None:
    if job.train is None or (place.net(job) / "model.safetensors").exists():
        return
    source = images(job.setting, "train", place, seed=job.seed)
    place.net(job).parent.mkdir(parents=True, exist_ok=True)
    training.train(job.train, source, job.value, place.net(job), progress=progress)


def _attack(job: Job, place: Place, progress: Progress) -> None:
    """The four attacks, each image's records in a folder an attack."""
    if finished(job, place):
        return
    s = job.setting
    model, weights = (s.model, s.weights) if job.train is None else (str(place.net(job)), None)
    test = images(s, "test", place)
    out = place.look(job)
    audit(
        model,
        test,
        job.attacks,
        out,
        weights=weights,
        code=None if job.train is None else job.train.model,
        seed=job.seed,
        probe=0,
        progress=progress,
    )


def _unheld(job: Job, place: Place, progress: Progress) -> None:
    """ΔW and SSIM of attacks that leave [0, 1], which no audit accepts."""
    file = place.look(job) / "distances.parquet"
    if finished(job, place):
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {"kind": "unheld", "net": job.trained, "attacks": repr(job.attacks)}
    store.open_run(place.look(job), own, device=device)
    net = net_of(job, place).to(device)
    test = as_in(net, images(job.setting, "test", place))
    rows: list[pl.DataFrame] = []
    for name, attack in job.attacks.items():
        done = 0
        for x, y in test:
            x = x.to(device)
            x_adv = attack(net, x, y if attack.uses_labels else None)
            with evaluating(net), torch.no_grad():
                kept = ask(net, x_adv).argmax(dim=1) == ask(net, x).argmax(dim=1)
            away = (x_adv - x).abs().flatten(1)
            columns = {
                "delta_w": away.mean(dim=1),
                "ssim": structural_similarity(x_adv, x),
                "linf": away.amax(dim=1),
                "kept": kept,
            }
            rows.append(pl.DataFrame({"attack": [name] * len(x), **_numpy(columns)}))
            done += len(x)
            progress(name, done, len(test))
    with store.writing(file.parent):
        store.write_frame(file, pl.concat(rows))


def _referee(job: Job, place: Place, progress: Progress) -> None:
    """The numbers of `poise compare`, the scales fitted on test images that are not attacked here."""
    if finished(job, place):
        return
    test = data.load(job.setting.data, split="test", root=place.root, batch_size=job.setting.batch_size)
    held, rest = test.divide(min(place.held, len(test) // 2))
    rest = rest.subset(min(job.setting.test or len(rest), len(rest)))
    s, out = job.setting, place.look(job)
    code = () if job.train is None else (job.train.model,)
    frame = compare(
        [place.net(job)], rest, held, out, code=code, eps=s.eps, steps=s.steps, progress=progress
    )
    with store.writing(out):
        store.write_frame(out / "comparison.parquet", frame)


def _numpy(columns: dict[str, torch.Tensor]) -> dict[str, object]:
    return {name: value.cpu().numpy() for name, value in columns.items()}

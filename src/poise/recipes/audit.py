"""An audit: one model, one data set, several attacks, into one run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from poise import models, store, training
from poise.attacks import Attack
from poise.checks import InputError
from poise.data import ImageSet
from poise.diagnostics import diagnose
from poise.evaluation import evaluate
from poise.fast import Fast
from poise.naming import lookup
from poise.progress import Progress, silent
from poise.recalibration import RECALIBRATIONS, Recalibrated, logits_of
from poise.report import read
from poise.shapes import Images, Labels, Model

PROBE = 16  # images on which every attack is run once more, watched


def audit(
    model: str,
    data: ImageSet,
    attacks: Mapping[str, Attack],
    out: str | Path,
    *,
    weights: str | Path | None = None,
    recalibrate: str | None = None,
    held_out: ImageSet | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Path:
    """Attack the model and leave the records in the run folder `out`, a folder an attack.

    The same call again goes on after the last whole attack; more attacks can join later.

    Args:
        model: a training run's folder, or the name of a model whose `weights` are given.
        data: the images.
        attacks: by the names that they get in tables.
        out: the run folder.
        weights: a file of weights, for a model given by name.
        recalibrate: one of RECALIBRATIONS, fitted first on `held_out`; the attacks see the result.
        held_out: images that are not in `data`.
        seed: of the attacks' draws.
        progress: told how far each attack is.

    Raises:
        InputError: a model that is not there or does not fit the data, or `out` holds another run.
    """
    folder = Path(out)
    net, facts = _model(model, data, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, data = net.to(device), data.on(device)
    if recalibrate is not None:
        net = _recalibrated(net, recalibrate, held_out)
        assert held_out is not None
        facts |= {"recalibration": recalibrate, "held_out": held_out.fingerprint()}
    job = {
        "kind": "audit",
        **facts,
        "data": data.name,
        "images": len(data),
        "fingerprint": data.fingerprint(),
        "classes": list(data.classes),
        "seed": seed,
    }
    store.open_run(folder, job)
    if isinstance(net, Recalibrated):
        store.write_tensors(folder / "recalibration.safetensors", net.last.state_dict())
    fresh = False
    for name, attack in attacks.items():
        part = store.open_run(
            folder / name, {"kind": "attack", "attack": repr(attack), "of": store.key_of(job)}
        )
        if (part / "records.parquet").exists():
            progress(name, len(data), len(data), "done before")
            continue
        _attack(net, data, attack, part, seed=seed, progress=progress)
        fresh = True
    if fresh or "findings" not in store.read_job(folder):
        _diagnose(net, data, attacks, folder)
    return folder


class Timed:
    """An attack that counts the seconds it takes, judging and loading left out."""

    def __init__(self, attack: Attack) -> None:
        self.attack, self.seconds = attack, 0.0

    @property
    def uses_labels(self) -> bool:
        """As the attack."""
        return self.attack.uses_labels

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """As the attack."""
        began = time.perf_counter()
        x_adv = self.attack(model, x, y, generator=generator)
        if x_adv.is_cuda:
            torch.cuda.synchronize(x_adv.device)
        self.seconds += time.perf_counter() - began
        return x_adv


def _attack(
    net: nn.Module, data: ImageSet, attack: Attack, part: Path, *, seed: int, progress: Progress
) -> None:
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        done += images
        progress(part.name, done, len(data))

    progress(part.name, 0, len(data))
    with attack.ready() if isinstance(attack, Fast) else nullcontext(attack) as ready:
        timed = Timed(ready)
        records = evaluate(net, data, timed, seed=seed, on_batch=on_batch)
        store.note(part, seconds=timed.seconds, notes=list(getattr(ready, "notes", ())))
    store.write_tensors(part / "images.safetensors", {"x": records.x, "x_adv": records.x_adv})
    store.write_frame(part / "records.parquet", records.frame())


def _diagnose(net: nn.Module, data: ImageSet, attacks: Mapping[str, Attack], folder: Path) -> None:
    """Note in job.json what makes the audit's numbers doubtful, looked for on a few of its images."""
    x, y = next(data.batched(PROBE).batches(torch.arange(min(PROBE, len(data)))))
    records = {part.name: part.records for part in read(folder).attacked if part.name in attacks}
    before = store.read_job(folder).get("findings", [])
    others = [f for f in before if f["attack"] and f["attack"] not in attacks]
    plain = {name: a.attack if isinstance(a, Fast) else a for name, a in attacks.items()}
    found = diagnose(net, plain, x, y, records=records)
    store.note(folder, findings=others + [asdict(finding) for finding in found])


def _recalibrated(net: nn.Module, method: str, held_out: ImageSet | None) -> Recalibrated:
    fit = lookup(RECALIBRATIONS, method, "recalibration")
    if held_out is None or len(held_out) == 0:
        raise InputError(f"recalibration by {method} needs held-out images")
    model = Recalibrated(net, fit(*logits_of(net, held_out))).eval()
    return model.to(next(net.parameters(), torch.empty(0)).device)


def check_fits(run: str | Path, job: Mapping[str, Any], data: ImageSet) -> None:
    """Refuse data of another shape or number of classes than the run was trained on."""
    if [tuple(job["shape"]), len(job["classes"])] != [data.shape, len(data.classes)]:
        raise InputError(
            f"the model in {str(run)!r} takes {job['shape']} images of {len(job['classes'])} classes, "
            f"{data.name} has {list(data.shape)} images of {len(data.classes)} classes: "
            "name data of the kind that it was trained on"
        )


def _model(model: str, data: ImageSet, weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and the facts that tell it from every other."""
    if Path(model).is_dir():
        if weights is not None:
            raise InputError("--weights goes with a model's name, and --model is a run folder")
        net, content = training.load(model), store.read_job(Path(model))
        job = content["job"]
        check_fits(model, job, data)
        file = Path(model) / "model.safetensors"
        facts = {"model": job["model"], "defense": job["defense"], "weights": store.file_hash(file)}
        return net, facts
    if weights is None and not models.comes_with_weights(model):
        models.load(model, classes=len(data.classes), shape=data.shape)  # its name may be unknown
        raise InputError(
            f"{model} comes without weights: train it (`poise train --model {model} ... --out RUN`) and "
            "name the run folder as --model, or give --weights FILE"
        )
    net = models.load(model, classes=len(data.classes), shape=data.shape, weights=weights)
    return net, {"model": model, "defense": None, "weights": models.fingerprint(net)}

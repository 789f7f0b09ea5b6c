"""What jobs will cost, before they are run: images sent through the net, and a time from one try."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from poise import models
from poise.attacks import Attack
from poise.auditing.timing import pass_seconds, passes
from poise.checks import InputError
from poise.defenses import Defense, Vanilla
from poise.fast import Fast
from poise.paper.jobs import Job
from poise.paper.run import Place, finished, images
from poise.paper.scale import Setting


class JobCost(NamedTuple):
    """What a job has still to spend: images sent through the net, and seconds; None where unknown."""

    job: str
    state: str  # done, to train, to look at; or what is missing
    forwards: int | None
    seconds: float | None


def plan(jobs: Sequence[Job], place: Place) -> list[JobCost]:
    """The cost of every job; of nets that several jobs need, the first pays for the training."""
    rows, seen = [], set[str]()
    for job in jobs:
        trained = (
            job.train is None or job.trained in seen or (place.net(job) / "model.safetensors").exists()
        )
        seen.add(job.trained)
        if finished(job, place):
            rows.append(JobCost(job.looked, "done", 0, 0.0))
            continue
        try:
            count = {split: len(images(job.setting, split, place)) for split in ("train", "test")[trained:]}
            seconds = _pass(job.setting, place)
        except InputError as error:
            rows.append(JobCost(job.looked, str(error), None, None))
            continue
        forwards = 0 if trained else count["train"] * job.setting.epochs * _of_defense(job.value)
        forwards += count["test"] * _of_look(job)
        state = "to look at" if trained else "to train"
        rows.append(JobCost(job.looked, state, forwards, forwards * seconds))
    return rows


@cache
def _pass(setting: Setting, place: Place) -> float:
    """Seconds of one forward and backward, an image, of one batch of noise."""
    data = images(setting, "test", place)
    net = models.load(setting.model, classes=len(data.classes), shape=data.shape)
    x = torch.rand(min(setting.batch_size, 16), *data.shape)
    if torch.cuda.is_available():
        net, x = net.cuda(), x.cuda()
    return pass_seconds(net, x, back=True) / len(x)


def _of_defense(defense: Defense) -> int:
    """Forwards an image and step of training."""
    if isinstance(defense, Vanilla):
        return 1
    return passes(lambda net, x, y: defense(net, x, y, torch.Generator().manual_seed(0)))[0]


def _of_look(job: Job) -> int:
    """Forwards a test image; `honest` has four attacks, and `auto`, with five more forwards, thrice."""
    if job.look == "referee":
        return 7 * (job.setting.steps + 3) + 3 * 5
    return sum(map(_of_attack, job.attacks.values()))


def _of_attack(attack: Attack) -> int:
    """Forwards an image, and the judge's two."""
    plain = attack.attack if isinstance(attack, Fast) else attack
    return passes(lambda net, x, y: plain(net, x, y if plain.uses_labels else None))[0] + 2

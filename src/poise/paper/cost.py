"""What jobs will cost, before they are run: images sent through the net, and a time from one try."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from poise import models
from poise.auditing.timing import pass_seconds, passes
from poise.checks import InputError
from poise.defenses import Defense, Vanilla
from poise.paper.looks import Job
from poise.paper.nets import PaperNet, Place
from poise.paper.suites import Setting


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
        net, ready = job.net, job.net.name in seen or job.net.ready(place)
        seen.add(net.name)
        if job.finished(place):
            rows.append(JobCost(job.name, "done", 0, 0.0))
            continue
        try:
            forwards = job.look.forwards(job, len(net.images("test", place)))
            if not ready:
                forwards += (
                    len(net.images("train", place)) * net.setting.job.epochs * _of_defense(net.value)
                )
            seconds = forwards * _pass(net.setting, place)
        except InputError as error:
            rows.append(JobCost(job.name, str(error), None, None))
            continue
        rows.append(JobCost(job.name, "to look at" if ready else "to train", forwards, seconds))
    return rows


@cache
def _pass(setting: Setting, place: Place) -> float:
    """Seconds of one forward and backward, an image, of one batch of noise."""
    data = PaperNet(setting=setting, defense="Vanilla", seed=0).images("test", place)
    net = models.load(setting.job.model, classes=len(data.classes), shape=data.shape)
    x = torch.rand(min(setting.batch_size, 16), *data.shape)
    if torch.cuda.is_available():
        net, x = net.cuda(), x.cuda()
    return pass_seconds(net, x, back=True) / len(x)


def _of_defense(defense: Defense) -> int:
    """Forwards an image and step of training."""
    if isinstance(defense, Vanilla):
        return 1
    return passes(lambda net, x, y: defense(net, x, y, torch.Generator().manual_seed(0)))[0]

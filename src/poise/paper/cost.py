"""What jobs will cost, before they are run: images sent through the net, and a time from one try."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from poise import models
from poise.attacks import Attack
from poise.auditing.estimate import Counted
from poise.checks import InputError
from poise.defenses import Defense, Vanilla
from poise.fast import Fast
from poise.modes import ask
from poise.paper.jobs import Job
from poise.paper.run import Place, finished, images
from poise.paper.scale import Setting


class Cost(NamedTuple):
    """What a job has still to spend: images sent through the net, and seconds; None where unknown."""

    job: str
    state: str  # done, to train, to look at; or what is missing
    forwards: int | None
    seconds: float | None


def plan(jobs: Sequence[Job], place: Place) -> list[Cost]:
    """The cost of every job; of nets that several jobs need, the first pays for the training."""
    rows, seen = [], set[str]()
    for job in jobs:
        trained = (
            job.train is None or job.trained in seen or (place.net(job) / "model.safetensors").exists()
        )
        seen.add(job.trained)
        if finished(job, place):
            rows.append(Cost(job.looked, "done", 0, 0.0))
            continue
        try:
            count = {split: len(images(job.setting, split, place)) for split in ("train", "test")[trained:]}
            seconds = _pass(job.setting, place)
        except InputError as error:
            rows.append(Cost(job.looked, str(error), None, None))
            continue
        forwards = 0 if trained else count["train"] * job.setting.epochs * _of_defense(job.value)
        forwards += count["test"] * _of_look(job)
        state = "to look at" if trained else "to train"
        rows.append(Cost(job.looked, state, forwards, forwards * seconds))
    return rows


@cache
def _pass(setting: Setting, place: Place) -> float:
    """Seconds of one forward and backward, an image: of one batch of noise, the second time."""
    data = images(setting, "test", place)
    net = models.load(setting.model, classes=len(data.classes), shape=data.shape)
    x = torch.rand(min(setting.batch_size, 16), *data.shape, requires_grad=True)
    if torch.cuda.is_available():
        net, x = net.cuda(), x.detach().cuda().requires_grad_()
    spent = 0.0
    for _ in range(2):
        began = time.perf_counter()
        torch.autograd.grad(ask(net, x).sum(), x)[0].sum().item()
        spent = time.perf_counter() - began
    return spent / len(x)


def _of_defense(defense: Defense) -> int:
    """Forwards an image and step of training."""
    net = _stub()
    y = torch.arange(4)
    defense(net, torch.rand(4, 1, 8, 8), y, torch.Generator().manual_seed(0))
    return -(-net.forwards // len(y)) if not isinstance(defense, Vanilla) else 1


def _of_look(job: Job) -> int:
    """Forwards a test image; `honest` has four attacks, and `auto`, with five more forwards, thrice."""
    if job.look == "referee":
        return 7 * (job.setting.steps + 3) + 3 * 5
    return sum(map(_of_attack, job.attacks.values()))


def _of_attack(attack: Attack) -> int:
    """Forwards an image, and the judge's two."""
    net, plain = _stub(), attack.attack if isinstance(attack, Fast) else attack
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    plain(net, x, y if plain.uses_labels else None)
    return -(-net.forwards // len(x)) + 2


def _stub() -> Counted:
    torch.manual_seed(0)
    return Counted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))

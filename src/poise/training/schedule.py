"""What changes from step to step: the learning rate, and how much of the budget is in force.

A defense's budget is every field called `eps` of the values that it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from poise.defenses import Defense
from poise.train_job import TrainJob

T = TypeVar("T")


def learning_rate(job: TrainJob, step: int, steps: int) -> float:
    """The learning rate of a step (counted from 0) out of so many.

    After a linear rise over `job.warmup` epochs a cosine falls to 0 (Loshchilov & Hutter 2017). The
    one-cycle schedule rises along a cosine from a 25th of `job.lr` over the first 30 % of the steps,
    then falls along one to a 10,000th of where it began (Smith & Topin 2018; torch's OneCycleLR).

    >>> job = TrainJob(data="digits", model="lenet", defense="vanilla", epochs=4, warmup=2, lr=1.0)
    >>> [learning_rate(job, step, 8) for step in (0, 3, 4, 6)]
    [0.25, 1.0, 1.0, 0.5]
    """
    if job.schedule == "one-cycle":
        return job.lr * _one_cycle(step, steps)
    warm = job.warmup * steps / job.epochs
    if step < warm:
        return job.lr * ramp(step, warm)
    if job.schedule == "constant":
        return job.lr
    return job.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def in_force(job: TrainJob, defense: Defense, step: int, steps: int) -> Defense:
    """The defense with the share of its budget that the step may use: a line over `job.eps_warmup`.

    >>> from poise import defenses
    >>> job = TrainJob(data="digits", model="lenet", defense="at", epochs=4, eps_warmup=1)
    >>> at = defenses.build("at", eps=0.5)
    >>> [in_force(job, at, step, 8).attack.ball.eps for step in (0, 1, 2)]
    [0.25, 0.5, 0.5]
    """
    warm = job.eps_warmup * steps / job.epochs
    return scale(defense, ramp(step, warm)) if step < warm else defense


def ramp(step: int, over: float) -> float:
    """A line that reaches 1 with the last of `over` steps, and stays there.

    >>> [ramp(step, 4) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / over) if over else 1.0


def budget(value: Any, *, linf: bool = False) -> float | None:
    """The first `eps` in a frozen value or in those that it holds; None where there is none.

    An eps of 1 or more in L∞ is none: all images in [0, 1] lie within it. With `linf` the lengths of
    other norms are passed over, for whoever needs a number of pixel units.

    >>> from poise import defenses
    >>> budget(defenses.build("at", eps=0.25)), budget(defenses.vanilla())
    (0.25, None)
    >>> budget(defenses.build("uat-gap-unprojected"))
    """
    return next(_budgets(value, linf=linf), None)


def scale(value: T, factor: float) -> T:
    """The same frozen value with every `eps` in it times the factor.

    >>> from poise import defenses
    >>> scale(defenses.build("at", eps=0.5), 0.5) == defenses.build("at", eps=0.25)
    True
    """
    if isinstance(value, tuple) and type(value) is tuple:
        return cast(T, tuple(scale(part, factor) for part in value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        new = part * factor if field.name == "eps" and part is not None else scale(part, factor)
        if new is not part:
            changes[field.name] = new
    return replace(value, **changes) if changes else value


def _budgets(value: Any, *, linf: bool) -> Iterator[float]:
    if isinstance(value, tuple):
        for part in value:
            yield from _budgets(part, linf=linf)
    if not is_dataclass(value) or isinstance(value, type):
        return
    other_norm = getattr(value, "norm", "linf") != "linf"
    for field in fields(value):
        part = getattr(value, field.name)
        if field.name != "eps" or not isinstance(part, float | int):
            yield from _budgets(part, linf=linf)
        elif not linf if other_norm else part < 1:
            yield float(part)


def _one_cycle(step: int, steps: int) -> float:
    low, top = 1 / 25, 0.3 * steps - 1
    if step <= top:
        return _cosine(low, 1.0, step / top if top else 1.0)
    return _cosine(1.0, low / 1e4, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))

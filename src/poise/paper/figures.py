"""The paper's figures, of nets that were run: which images they show is decided by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from poise.attacks import Attack
from poise.checks import InputError, check_count, check_labels
from poise.labels import as_in
from poise.paper import jobs
from poise.paper.looks import Job
from poise.paper.nets import Place
from poise.paper.plots import (
    ClassConfidence,
    ConfidenceGrid,
    Display,
    Perturbations,
    ProbabilityTrace,
    oscillations,
)
from poise.paper.readings import Reading, attacks_of
from poise.paper.suites import Suite
from poise.records import Records
from poise.report import read
from poise.shapes import Images, Labels, Model

WALKED = 8  # images of which one walk is shown


class Figure(NamedTuple):
    """One of the paper's figures.

    Args:
        title: what it shows.
        jobs: whose nets it shows.
        draw: the picture, and which images it is of; not called without jobs.
    """

    title: str
    jobs: Callable[[Suite, Reading], list[Job]]
    draw: Callable[[Sequence[Job], Place], tuple[Display, str]]


def perturbations(shown: Sequence[Job], place: Place) -> tuple[Display, str]:
    """One image and its change under the four attacks: of those kept, ConfSmooth's lowest (Figure 1)."""
    records = _records(shown[0], place)
    r = records["ConfSmooth"]
    msp = r.attacked.max(dim=1).values[: len(r.x)]
    index = int((msp + 2 * (~r.correct[: len(r.x)])).argmin())
    told = (
        f"The right answer among the first {len(r.x)} test images that ConfSmooth leaves least sure; seed "
        "0. One colour scale for all, in pixel units."
    )
    return Perturbations.of(records, index), told


def histograms(shown: Sequence[Job], place: Place) -> tuple[Display, str]:
    """Confidence of right and wrong answers by defense, before and after ConfSmooth (Figure 2)."""
    rows = {job.net.defense: _records(job, place)["ConfSmooth"] for job in shown}
    return ConfidenceGrid(rows, "ConfSmooth"), "Shares of the right and of the wrong answers; seed 0."


def walks(shown: Sequence[Job], place: Place) -> tuple[Display, str]:
    """One image's probabilities over the steps of three attacks (Figure S1)."""
    own = shown[0].net
    net = own.load(place)
    test = as_in(net, own.images("test", place).batched(WALKED))
    x, y = next(iter(test))
    attacks = attacks_of(replace(own.setting, fast=False), own.reading)
    found = {name: traces(net, x, _to_its_last(attacks[name])) for name in jobs.UNDERCONFIDENCE}
    index = most_oscillating(found["Dropout"], y)
    often = sorted(oscillations(walk) for walk in found["Dropout"])
    told = (
        f"Of the first {len(x)} test images, the right answer whose top class changes most often under "
        f"Dropout ({oscillations(found['Dropout'][index])} times; the median over all is "
        f"{often[len(often) // 2]}); seed 0. An attack that steps back stands still where a step would "
        "lose the label, so its top class cannot change."
    )
    return ProbabilityTrace({name: walk[index] for name, walk in found.items()}, test.classes), told


def confidences(shown: Sequence[Job], place: Place) -> tuple[Display, str]:
    """Confidence after ConfSmooth by predicted class, with the threshold 0.5 (Figure S2)."""
    records = _records(shown[0], place)["ConfSmooth"]
    classes = read(shown[0].folder(place)).content["job"]["classes"]  # in the order of the model's logits
    return ClassConfidence(records, tuple(classes)), "A point an image; seed 0."


FIGURES = {
    "figure1": Figure(
        "One image and its change under the four attacks (Figure 1): of those kept, ConfSmooth's lowest",
        jobs.figure1,
        perturbations,
    ),
    "figure2": Figure(
        "Confidence of right and wrong answers, before and after ConfSmooth, by defense (Figure 2)",
        jobs.figure2,
        histograms,
    ),
    "figureS1": Figure(
        "One image's probabilities over the steps of three attacks (Figure S1)", jobs.figure_s1, walks
    ),
    "figureS2": Figure(
        "Confidence after ConfSmooth by predicted class, with the threshold 0.5 (Figure S2)",
        jobs.figure_s1,
        confidences,
    ),
}


def _records(job: Job, place: Place) -> Mapping[str, Records]:
    if not job.finished(place):
        raise InputError(f"{job.name} has not been run to its end")
    return {part.name: part.records for part in read(job.folder(place)).attacked}


def _to_its_last(attack: Any) -> Attack:
    last: Attack = replace(attack, keep="last")
    return last


def traces(
    net: Model, x: Images, attack: Attack, *, y: Labels | None = None, seed: int = 0
) -> Float[Tensor, "n t k"]:
    """The probabilities at every point where the images stand, (n, steps + 1, k), on the CPU.

    Under the rule `Always` (PGD, Dropout) those are the points tried. Under a step-back rule an
    image whose step was taken back stands where it stood, so its top class does not change by
    construction: there `regained` tells how calm the walk is.

    Args:
        net: images in [0, 1] -> logits.
        x: images, on the net's device.
        attack: one that walks by `Descent`: pgd, dropout, adaptive, confsmooth, ...
        y: labels (n,), for an attack against the true label.
        seed: of the attack's draws; with that of `poise.evaluate` it is the same walk.

    Raises:
        InputError: an attack without such a walk or without steps, or no images.
    """
    walk: Any = attack
    if not hasattr(walk, "path"):
        raise InputError(
            f"a trace needs an attack that walks step by step (Descent), got {type(attack).__name__}: "
            "take pgd, dropout, adaptive or confsmooth as they are"
        )
    check_count("steps", walk.steps, 1)
    if len(x) == 0:
        raise InputError("there are no images to trace: x is empty")
    generator = torch.Generator().manual_seed(seed)
    points = walk.path(net, x, y, generator=generator)
    return torch.stack([at.logits.softmax(dim=1) for at in points], dim=1).cpu()


def most_oscillating(walks: Float[Tensor, "n t k"], y: Labels) -> int:
    """The image to show: of the right answers, the one whose top class changes most often.

    The first of them where several do alike. Meant for the walks under Dropout, so that the
    picture shows the strongest case of what the paper describes, by rule and not by taste.

    >>> calm, restless = [[0.9, 0.1]] * 3, [[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]]
    >>> most_oscillating(torch.tensor([calm, restless, restless]), torch.tensor([0, 0, 0]))
    1

    Raises:
        InputError: none of the answers is right.
    """
    check_labels(y, len(walks))
    y = y.to(walks.device)
    right = walks[:, 0].argmax(dim=1) == y
    if not right.any():
        raise InputError("none of the images is classified rightly, so there is none to show: take more")
    changes = torch.tensor([oscillations(walk) for walk in walks], device=walks.device)
    return int(torch.where(right, changes, -1).argmax())

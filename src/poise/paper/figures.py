"""The paper's figures, of nets that were run: which images they show is decided by a stated rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from poise.attacks import Attack, Descent
from poise.checks import InputError
from poise.labels import as_in
from poise.paper import jobs
from poise.paper.jobs import Job
from poise.paper.readings import Reading, attacks_of
from poise.paper.run import Place, finished, images, net_of
from poise.paper.salience import random_signs, salience
from poise.paper.scale import Scale
from poise.paper.traces import most_oscillating, traces
from poise.records import Records
from poise.report import read
from poise.report.figures import Display, Perturbations
from poise.report.paper_figures import ClassConfidence, ConfidenceGrid, ProbabilityTrace, oscillations

WEIGHED = 500  # images on which perturbations are weighed against saliency
WALKED = 8  # images of which one walk is shown


def figure1(scale: Scale, reading: Reading, place: Place) -> tuple[Display, str]:
    """One image and its change under the four attacks (Figure 1): of those kept, ConfSmooth's lowest."""
    job = next(j for j in jobs.table2(scale, reading) if j.look == "attacked")
    records = _records(job, place)
    r = records["ConfSmooth"]
    msp = r.attacked.max(dim=1).values[: len(r.x)]
    index = int((msp + 2 * (~r.correct[: len(r.x)])).argmin())
    told = (
        f"The right answer among the first {len(r.x)} test images that ConfSmooth leaves least sure; seed "
        "0. One colour scale for all, in pixel units."
    )
    return Perturbations.of(records, index), told


def figure2(scale: Scale, reading: Reading, place: Place) -> tuple[Display, str]:
    """Confidence of right and wrong answers, before and after ConfSmooth, by defense (Figure 2)."""
    rows = {job.defense: _records(job, place)["ConfSmooth"] for job in jobs.figure2(scale, reading)}
    return ConfidenceGrid(rows, "ConfSmooth"), "Shares of the right and of the wrong answers; seed 0."


def figure_s1(scale: Scale, reading: Reading, place: Place) -> tuple[Display, str]:
    """One image's probabilities over the steps of three attacks (Figure S1)."""
    job = jobs.figure_s1(scale, reading)[0]
    net = net_of(job, place)
    data = as_in(net, images(replace(job.setting, batch_size=WALKED), "test", place))
    x, y = next(iter(data))
    chosen = attacks_of(replace(job.setting, fast=False), reading)
    walks = {name: traces(net, x, _walks(chosen[name])) for name in ("Dropout", "Adaptive", "ConfSmooth")}
    index = most_oscillating(walks["Dropout"], y)
    often = sorted(oscillations(walk) for walk in walks["Dropout"])
    told = (
        f"Of the first {len(x)} test images, the right answer whose top class changes most often under "
        f"Dropout ({oscillations(walks['Dropout'][index])} times; the median over all is "
        f"{often[len(often) // 2]}); seed 0. An attack that steps back stands still where a step would "
        "lose the label, so its top class cannot change."
    )
    return ProbabilityTrace({name: walk[index] for name, walk in walks.items()}, data.classes), told


def figure_s2(scale: Scale, reading: Reading, place: Place) -> tuple[Display, str]:
    """Confidence after ConfSmooth by predicted class, with the threshold 0.5 (Figure S2)."""
    job = jobs.figure_s1(scale, reading)[0]
    records = _records(job, place)["ConfSmooth"]
    classes = read(place.look(job)).content["job"]["classes"]  # in the order of the model's logits
    return ClassConfidence(records, tuple(classes)), "A point an image; seed 0."


FIGURES = {"figure1": figure1, "figure2": figure2, "figureS1": figure_s1, "figureS2": figure_s2}


def weights(job: Job, place: Place) -> pl.DataFrame:
    """Where the perturbations of a net of Table 2 fall, by attack: relative weight on saliency and object.

    Columns: attack ("chance" for random signs), image, salient, object, object_share, object_area.
    """
    net = net_of(job, place)
    data = as_in(net, images(replace(job.setting, batch_size=WEIGHED), "test", place))
    x, y = next(iter(data))
    changed = {
        name: attack(net, x, y if attack.uses_labels else None) for name, attack in job.attacks.items()
    }
    changed["chance"] = random_signs(x, eps=job.setting.eps)
    return salience(net, x, changed)


def _records(job: Job, place: Place) -> Mapping[str, Records]:
    if not finished(job, place):
        raise InputError(f"{job.looked} has not been run to its end")
    return {part.name: part.records for part in read(place.look(job)).attacked}


def _walks(attack: Attack) -> Descent:
    assert isinstance(attack, Descent)
    return replace(attack, keep="last")

"""A model and data that fit each other: their shape, classes and preparation; what is told of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise import labels, models
from poise.checks import InputError, name_some
from poise.data import ImageSet
from poise.diagnostics import Finding
from poise.diagnostics.finding import LEAST, above_least, of_images
from poise.modes import call_model, evaluating, logits_in
from poise.preparation import Preparation
from poise.training.outcome import preparation_in, read_finished


def check_shape(run: str | Path, job: Mapping[str, Any], data: ImageSet) -> None:
    """Refuse images of another shape than the run was trained on."""
    if tuple(job["shape"]) == data.shape:
        return
    channels, height, width = job["shape"]
    flags = [f"--read.size {height}"] if (height, width) != data.shape[1:] and height == width else []
    flags += [f"--read.channels {'grey' if channels == 1 else 'rgb'}"] if channels != data.shape[0] else []
    ways = (
        f"prepare them so ({' '.join(flags)})" if flags else "name data of the kind that it was trained on"
    )
    raise InputError(
        f"the model in {str(run)!r} takes {job['shape']} images, {data.name} has {list(data.shape)}: {ways}"
    )


def match_labels(
    net: nn.Module, data: ImageSet, *, given: labels.Given | None = None, who: str = "the model"
) -> tuple[ImageSet, dict[str, Any]]:
    """The data with the labels that the net gives its classes, and what a job says of that: nothing
    where every label is as it was.

    Raises:
        InputError: classes that cannot be matched.
    """
    names = labels.names_of(net)
    outputs = _outputs(net, data) if names is None else len(names)
    order = labels.match(data.classes, names, outputs=outputs, given=given, who=who, what=data.name)
    if order == tuple(range(outputs)):
        return data, {}
    told = {name: names[place] if names else place for name, place in zip(data.classes, order, strict=True)}
    return labels.relabel(data, order, names, outputs=outputs), {"class_map": told}


def preparation_for(model: str, weights: str | Path | None = None) -> Preparation:
    """What is done to images by default before this model sees them: a run's own, or its pipeline's."""
    if Path(model).expanduser().is_dir():
        content, _ = read_finished(model)
        return preparation_in(content) or Preparation()
    return models.preparation(model, weights) or Preparation()


def fit_findings(
    net: nn.Module,
    data: ImageSet,
    *,
    class_map: Mapping[str, object] | None,
    seen: Tensor | None,
    held_out: ImageSet | None,
    least: float = LEAST,
) -> tuple[Finding, ...]:
    """What makes an audit's numbers doubtful in how its data fit the model, and how labels were matched.

    Args:
        net: the model.
        data: the images that are attacked, in the model's labels.
        class_map: where the labels were matched, what to.
        seen: marks of the images that the model was trained on, where known.
        held_out: images that something was fitted on.
        least: the share of images from which on there is a finding.
    """
    found, marks = [], data.marks() if seen is not None or held_out is not None else torch.empty(0)
    if seen is not None:
        found.append(
            of_images(
                "trained-on",
                "",
                torch.isin(marks, seen),
                "of these images are among those that the model was trained on",
                "Name other images: what a model does on its training images says little of new ones.",
            )
        )
    if held_out is not None:
        found.append(
            of_images(
                "fitted-on",
                "",
                torch.isin(marks, held_out.marks()),
                "of these images are among those that the recalibration was fitted on",
                "Hold other images out.",
            )
        )
    if class_map:
        pairs = name_some([f"{name} is {place}" for name, place in class_map.items()])
        found.append(
            Finding(
                "classes-matched",
                "",
                1.0,
                f"The data's classes are not the model's in their order and were matched: {pairs}.",
                "Look whether they mean the same, or give --class-map DATA=MODEL.",
            )
        )
    return above_least(found + _check_preparation(net, data), least)


def _check_preparation(net: nn.Module, data: ImageSet) -> list[Finding]:
    """How the images differ in size, crop or resizing from those that the model's weights are for."""
    own, size = getattr(net, "preparation", None), getattr(net, "size", None)
    got = data.preparation
    if own is not None and got is not None and own.window != got.window:
        seen = f"These images {got.said}, in the model's own pipeline they {own.said}."
        advice = (
            "Leave --read.* away to have the model's own, unless its weights were trained on such images."
        )
        return [Finding("other-preparation", "", 1.0, seen, advice)]
    if size is not None and tuple(size) != data.shape[1:]:
        (h, w), (height, width) = size, data.shape[1:]
        seen = f"The images have {width}×{height} pixels, the model's published weights are for {w}×{h}."
        advice = f"Prepare them so (--read.size {h}), unless these weights were trained on such images."
        return [Finding("other-size", "", 1.0, seen, advice)]
    return []


def _outputs(net: nn.Module, data: ImageSet) -> int:
    """How many logits the net gives."""
    x, _ = next(data.batched(1).batches(torch.zeros(1, dtype=torch.int64)))
    weight = next(net.parameters(), torch.empty(0))
    with evaluating(net), torch.no_grad():
        return int(logits_in(call_model(net, x.to(weight.device, weight.dtype))).shape[1])

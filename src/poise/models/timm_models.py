"""timm's image classifiers, by name."""

import difflib
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from poise.checks import InputError
from poise.models.extras import require
from poise.models.normalize import Classifier, Normalize, check_answers, check_colours
from poise.preparation import INTERPOLATIONS, Preparation


def timm_model(
    name: str,
    *,
    classes: int | None = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = False,
    new_head: bool = False,
) -> Classifier:
    """timm/NAME: any image classifier of timm; needs the extra timm (Wightman 2019).

    Normalisation and preparation are those of the weights that timm publishes under that name.

    Args:
        name: timm's name, e.g. "resnet18", "resnet18.a1_in1k".
        classes: how many logits; None is as many as those weights have.
        shape: (channels, height, width) of the images.
        pretrained: download those weights; otherwise they are random.
        new_head: another number of classes than theirs gets a random head instead of a refusal.
    """
    timm = require("timm", extra="timm", what=f"timm/{name}")
    check_colours(f"timm/{name}", shape)
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise InputError(f"unknown timm model {name!r}: {_guess(name, timm.list_models())}")
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=classes or _classes(timm, name))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"timm/{name} cannot be had: {error}") from error
    theirs = net.pretrained_cfg.get("num_classes")
    if pretrained and classes not in (None, theirs) and not new_head:
        raise InputError(f"the weights of timm/{name} are for {theirs} classes, not for {classes}")
    config = timm.data.resolve_model_data_config(net)
    names = net.pretrained_cfg.get("label_names") if pretrained and classes in (None, theirs) else None
    model = Classifier(
        Normalize(config["mean"], config["std"]),
        net,
        tuple(config["input_size"][1:]),
        names if names and len(names) == theirs else None,
        pipeline(config),
    ).eval()
    if model.size != shape[1:]:
        check_answers(f"timm/{name}", model, net.num_classes, shape)
    return model


def preparation(name: str) -> Preparation | None:
    """What the weights that timm publishes under that name want done to an image; None not known."""
    timm = require("timm", extra="timm", what=f"timm/{name}")
    found = timm.get_pretrained_cfg(name) if ":" not in name else None
    if found is None:
        return None
    return pipeline(timm.data.resolve_data_config(pretrained_cfg=found.to_dict()))


def pipeline(config: Mapping[str, Any]) -> Preparation | None:
    """The preparation in timm's configuration, where it is one of ours.

    >>> about = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    >>> found = pipeline(about | {"crop_mode": "center"})
    >>> found.resize, found.size, found.interpolation, found.squash
    (256, 224, 'bicubic', None)
    """
    (height, width), mode = config["input_size"][1:], config["crop_mode"]
    if height != width or mode not in ("center", "squash") or config["interpolation"] not in INTERPOLATIONS:
        return None
    resize = math.floor(height / config["crop_pct"])
    return Preparation(
        size=height,
        resize=resize,
        squash=mode == "squash" or None,
        interpolation=config["interpolation"],
    )


def _classes(timm: ModuleType, name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    return 1000 if config is None else int(config.num_classes)


def _guess(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"

"""Image classifiers of torchvision, timm and RobustBench, by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from torch import nn

from poise.checks import BROKEN, InputError, require
from poise.models.normalize import Classifier, Normalize, check_answers, check_colours
from poise.models.weights import fit
from poise.naming import known_name
from poise.preparation import INTERPOLATIONS, Preparation


def vision(
    name: str,
    *,
    classes: int | None = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = False,
    new_head: bool = False,
) -> Classifier:
    """torchvision/NAME: any image classifier of torchvision, e.g. efficientnet_b0, resnet50, vit_b_16.

    The normalisation is the one of torchvision's own best weights, whichever weights come in.

    Args:
        name: torchvision's name.
        classes: how many logits; None is as many as those weights have.
        shape: (channels, height, width) of the images.
        pretrained: download those weights (ImageNet); otherwise they are random.
        new_head: another number of classes than 1,000 gets a random head instead of a refusal.
    """
    from torchvision import models

    name = known_name(models.list_models(module=models), name, "torchvision model")
    check_colours(f"torchvision/{name}", shape)
    best = models.get_model_weights(name).DEFAULT
    options, own = _vision_options(name, shape), list(best.meta["categories"])
    classes = classes or len(own)
    try:
        net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"torchvision/{name} cannot be built for images of {shape}: {error}") from error
    if pretrained:
        state = _download(name, best, options).state_dict()
        fit(net, state, f"torchvision's weights of {name}", new_head=new_head)
    asked = best.transforms()
    model = Classifier(
        Normalize(asked.mean, asked.std),
        net,
        (asked.crop_size[0],) * 2,
        own if pretrained and classes == len(own) else None,
        vision_preparation(name),
    ).eval()
    if model.size != shape[1:]:
        check_answers(f"torchvision/{name}", model, classes, shape)
    return model


def vision_preparation(name: str) -> Preparation | None:
    """What torchvision's own best weights want done to an image; None not known."""
    from torchvision import models

    asked = models.get_model_weights(known_name(models.list_models(module=models), name, "model")).DEFAULT
    about = asked.transforms()
    way = about.interpolation.value
    if way not in INTERPOLATIONS:
        return None
    return Preparation(size=about.crop_size[0], resize=about.resize_size[0], interpolation=way)


def _vision_options(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What a few of the builders must be told: the images' size, and to return one tensor of logits."""
    if name.startswith("vit_"):
        if shape[1] != shape[2]:
            raise InputError(f"torchvision/{name} takes square images, got {shape[1]}×{shape[2]}")
        return {"image_size": shape[1]}
    if name.startswith("maxvit"):
        return {"input_size": shape[1:]}
    if name in ("googlenet", "inception_v3"):  # the second head is for training only
        return {"aux_logits": False, "init_weights": True, "transform_input": True}
    return {}


def _download(name: str, best: Any, options: dict[str, Any]) -> nn.Module:
    """The net with torchvision's weights, as its own loader makes it; the file's hash is checked there."""
    from torchvision import models

    own = ("aux_logits", "init_weights")  # the loader sets them itself
    options = {key: value for key, value in options.items() if key not in own}
    try:
        net: nn.Module = models.get_model(name, weights=best, **options)
    except OSError as error:
        raise InputError(
            f"the weights of torchvision/{name} cannot be downloaded ({error}): "
            f"fetch {best.url} and give it as --weights FILE"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchvision's weights of {name} do not fit: {error}") from error
    return net


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
        timm_pipeline(config),
    ).eval()
    if model.size != shape[1:]:
        check_answers(f"timm/{name}", model, net.num_classes, shape)
    return model


def timm_preparation(name: str) -> Preparation | None:
    """What the weights that timm publishes under that name want done to an image; None not known."""
    timm = require("timm", extra="timm", what=f"timm/{name}")
    found = timm.get_pretrained_cfg(name) if ":" not in name else None
    if found is None:
        return None
    return timm_pipeline(timm.data.resolve_data_config(pretrained_cfg=found.to_dict()))


def timm_pipeline(config: Mapping[str, Any]) -> Preparation | None:
    """The preparation in timm's configuration, where it is one of ours.

    >>> about = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    >>> found = timm_pipeline(about | {"crop_mode": "center"})
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


LEADERBOARDS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def robust_bench(
    name: str,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    pretrained: bool = True,
    new_head: bool = False,
) -> nn.Module:
    """robustbench/NAME: a model of RobustBench with its weights; needs the extra (Croce et al. 2021).

    Args:
        name: the model's identifier, for ℓ∞ and the data set of so many classes (10: CIFAR-10), or
            DATASET/THREAT/IDENTIFIER, e.g. "cifar10/L2/Standard".
        classes: how many logits.
        shape: (channels, height, width) of the images.
        pretrained: its weights always come with it.
        new_head: refused where the number of classes differs.
    """
    del pretrained, new_head
    package = require("robustbench", extra="robustbench", what=f"robustbench/{name}")
    parts = name.split("/")
    if len(parts) == 1 and classes not in LEADERBOARDS:
        raise InputError(
            f"RobustBench has no data set of {classes} classes: name it, robustbench/DATASET/THREAT/{name}"
        )
    if len(parts) not in (1, 3):
        raise InputError(f"robustbench/{name} is neither NAME nor DATASET/THREAT/NAME")
    data, threat, model_name = parts if len(parts) == 3 else (LEADERBOARDS[classes], "Linf", name)
    folder = f"{torch.hub.get_dir()}/robustbench"
    try:
        net: nn.Module = package.load_model(
            model_name=model_name, dataset=data, threat_model=threat, model_dir=folder
        )
    except (*BROKEN, ImportError, UnpicklingError) as error:
        raise InputError(f"robustbench/{name} cannot be had: {error!r}") from error
    net.eval()
    check_answers(f"robustbench/{name}", net, classes, shape)
    return net

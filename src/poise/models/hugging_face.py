"""Image classifiers from the Hugging Face Hub, or from a folder in its layout."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from poise.checks import BROKEN, InputError, require
from poise.models.normalize import Classifier, Normalize, check_answers, check_colours
from poise.models.weights import head
from poise.modes import check_one_answer
from poise.preparation import INTERPOLATIONS, Preparation

FLAGS = (
    "do_center_crop",
    "do_resize",
    "do_flip_channel_order",
    "do_normalize",
    "do_rescale",
    "include_top",
    "rescale_offset",
)


WAYS: Mapping[Any, Any] = {  # Pillow's numbers, and timm's words
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    **{way: way for way in INTERPOLATIONS},
}


class Logits(nn.Module):
    """A Hugging Face classifier that returns the logits alone.

    Args:
        net: images -> an output with `.logits`.
        bgr: the network wants blue first.
    """

    def __init__(self, net: nn.Module, *, bgr: bool = False) -> None:
        super().__init__()
        self.net, self.bgr = net, bgr

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=x.flip(1) if self.bgr else x).logits
        return logits


def hugging_face_model(
    name: str,
    *,
    classes: int | None = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = True,
    new_head: bool = False,
) -> Classifier:
    """hf/NAME: a Hugging Face image classifier, from the Hub or a folder; needs the extra hf.

    Normalisation and preparation are its image processor's. Code of the Hub never runs.

    Args:
        name: "owner/name" on the Hub, or the path of a folder.
        classes: how many logits; None is as many as its own.
        shape: (channels, height, width) of the images.
        pretrained: with its weights; otherwise they are random.
        new_head: another number of classes than the weights' gets a random head instead of a refusal.
    """
    transformers = require("transformers", extra="hf", what=f"hf/{name}")
    check_colours(f"hf/{name}", shape)
    options, about = _options(name), _settings(_processor(name))
    own = _fetch(name, transformers.AutoConfig.from_pretrained, name, **options)
    classes = classes or int(own.num_labels)
    if pretrained:
        net = _load_published(transformers, name, classes, new_head, options)
    else:
        config = _fetch(name, transformers.AutoConfig.from_pretrained, name, num_labels=classes, **options)
        net = _fetch(name, transformers.AutoModelForImageClassification.from_config, config)
    check_one_answer(net)
    names = _names(own) if pretrained and classes == own.num_labels else None
    body = Logits(net.to(torch.float32), bgr=bool(about["do_flip_channel_order"]))
    first, size = Normalize(*normalisation(about)), _size(about)
    model = Classifier(first, body, size, names, hugging_face_pipeline(about)).eval()
    if model.size != shape[1:]:
        check_answers(f"hf/{name}", model, classes, shape)
    return model


def hugging_face_preparation(name: str) -> Preparation | None:
    """What the image processor of hf/NAME does to an image before its pixels are scaled; None not known."""
    return hugging_face_pipeline(_settings(_processor(name)))


def hugging_face_pipeline(about: Mapping[str, Any]) -> Preparation | None:
    """The same from its settings, where it is one of ours.

    >>> hugging_face_pipeline({"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2}).squash
    True
    """
    resized, cut = _shape(about.get("size")), _shape(about.get("crop_size"))
    cut = cut if about.get("do_center_crop") else None
    way = WAYS.get(about.get("resample"), "")
    if not about.get("do_resize"):
        return Preparation(crop=cut[0]) if cut and cut[0] == cut[1] else None
    if way not in INTERPOLATIONS or resized is None or resized[0] != resized[1]:
        return None
    (side, _), squash = resized, "height" in about["size"]
    if (share := about.get("crop_pct")) and not squash:  # ConvNeXt and PoolFormer
        cut, squash = cut or resized, side >= 384 and cut is None
        side = side if squash else int(side / share)
    size = side if cut is None else cut[0]
    if (cut is None and not squash) or (cut and cut[0] != cut[1]) or size > side:
        return None  # images keep their shape, or get black borders
    return Preparation(size=size, resize=side, squash=squash or None, interpolation=way)


def normalisation(about: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation in [0, 1] of what an image processor does to 8-bit pixels.

    It multiplies 0 … 255 by a factor, may take 1 off, and normalises.

    >>> normalisation({"do_rescale": True, "rescale_factor": 1 / 127.5, "rescale_offset": True})
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    """
    normalises = about.get("do_normalize") and about.get("image_mean") is not None
    mean: Any = about["image_mean"] if normalises else 0.0
    std: Any = about["image_std"] if normalises else 1.0
    if not isinstance(mean, list | tuple):
        mean, std = [mean] * 3, [std] * 3
    factor = about["rescale_factor"] if about.get("do_rescale") else 1.0
    scale = 255 * factor
    offset = 1.0 if about.get("rescale_offset") else 0.0
    twice = about.get("include_top") and normalises  # EfficientNet's divides once more
    return (
        [(m + offset) / scale for m in mean],
        [s * (s if twice else 1.0) / scale for s in std],
    )


def _options(name: str) -> dict[str, Any]:
    return {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}


def _processor(name: str) -> Any:
    transformers = require("transformers", extra="hf", what=f"hf/{name}")
    return _fetch(name, transformers.AutoImageProcessor.from_pretrained, name, **_options(name))


def _names(config: Any) -> tuple[str, ...] | None:
    """The names of the labels in their order, where the configuration has one for each."""
    told = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    whole = set(told) == set(range(config.num_labels))
    return tuple(told[place] for place in range(config.num_labels)) if whole else None


def _fetch(name: str, load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What one call of transformers gives."""
    from huggingface_hub import errors  # which transformers needs

    strict = getattr(errors, "StrictDataclassError", OSError)  # of configurations, in newer versions
    try:
        return load(*args, **options)
    except (*BROKEN, ImportError, SafetensorError, UnpicklingError, strict) as error:
        raise InputError(f"hf/{name} cannot be had: {error}") from error


def _load_published(
    transformers: ModuleType, name: str, classes: int, new_head: bool, options: dict[str, Any]
) -> nn.Module:
    """The network with its own weights, refused where some are missing or are for other classes."""
    config = _fetch(name, transformers.AutoConfig.from_pretrained, name, **options)
    if config.num_labels != classes and not new_head:
        raise InputError(f"hf/{name} is for {config.num_labels} classes, not for {classes}")
    if config.num_labels != classes:
        options = {**options, "num_labels": classes, "ignore_mismatched_sizes": True}
    load = transformers.AutoModelForImageClassification.from_pretrained
    net: nn.Module
    net, found = _fetch(name, load, name, output_loading_info=True, **options)
    name_of_head, layer = head(net)
    free = {f"{name_of_head}.{key}" for key in layer.state_dict()} if new_head else set()
    misshapen = (key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])
    absent = sorted({*found["missing_keys"], *misshapen} - free)
    if absent:
        raise InputError(f"hf/{name} is no trained classifier, it has no weights for {', '.join(absent)}")
    return net


def _settings(processor: Any) -> dict[str, Any]:
    """What a processor is set to; timm's inside Hugging Face keeps it elsewhere."""
    flags = {flag: bool(getattr(processor, flag, False)) for flag in FLAGS}  # absent is off
    timm_config = getattr(processor, "data_config", None)
    if timm_config is None:
        return {**processor.to_dict(), **flags}
    return {
        **flags,
        "do_normalize": True,
        "image_mean": list(timm_config["mean"]),
        "image_std": list(timm_config["std"]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_center_crop": True,
        "resample": timm_config["interpolation"],
        "size": {"shortest_edge": math.floor(timm_config["input_size"][-1] / timm_config["crop_pct"])},
        "crop_size": dict(zip(("height", "width"), timm_config["input_size"][1:], strict=True)),
    }


def _size(about: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of what the processor hands to the network."""
    return _shape(about.get("crop_size") if about.get("do_center_crop") else about.get("size"))


def _shape(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if not isinstance(size, dict):
        return None
    if "height" in size:
        return size["height"], size["width"]
    edge = size.get("shortest_edge")
    return None if edge is None else (edge, edge)

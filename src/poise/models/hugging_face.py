"""Image classifiers from the Hugging Face Hub, or from a folder in its layout."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from poise.checks import BROKEN, InputError
from poise.given import check_one_answer
from poise.models.extras import require
from poise.models.normalize import Classifier, Normalize, check_answers, check_colours
from poise.models.weights import head

FLAGS = (
    "do_center_crop",
    "do_flip_channel_order",
    "do_normalize",
    "do_rescale",
    "include_top",
    "rescale_offset",
)


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


def hugging_face(
    name: str,
    *,
    classes: int = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = True,
    new_head: bool = False,
) -> Classifier:
    """hf/NAME: a Hugging Face image classifier, from the Hub or a folder; needs the extra hf.

    The normalisation and the size are those of its image processor. Code of the Hub never runs.

    Args:
        name: "owner/name" on the Hub, or the path of a folder.
        classes: how many logits.
        shape: (channels, height, width) of the images.
        pretrained: with its weights; otherwise they are random.
        new_head: another number of classes than the weights' gets a random head instead of a refusal.
    """
    transformers = require("transformers", extra="hf", what=f"hf/{name}")
    check_colours(f"hf/{name}", shape)
    options = {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}
    processor = _had(name, transformers.AutoImageProcessor.from_pretrained, name, **options)
    if pretrained:
        net = _published(transformers, name, classes, new_head, options)
    else:
        config = _had(name, transformers.AutoConfig.from_pretrained, name, num_labels=classes, **options)
        net = _had(name, transformers.AutoModelForImageClassification.from_config, config)
    check_one_answer(net)
    about = _settings(processor)
    body = Logits(net.to(torch.float32), bgr=bool(about["do_flip_channel_order"]))
    model = Classifier(Normalize(*normalisation(about)), body, _size(about)).eval()
    if model.size != shape[1:]:
        check_answers(f"hf/{name}", model, classes, shape)
    return model


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


def _had(name: str, load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What one call of transformers gives."""
    from huggingface_hub import errors  # which transformers needs

    strict = getattr(errors, "StrictDataclassError", OSError)  # of configurations, in newer versions
    try:
        return load(*args, **options)
    except (*BROKEN, ImportError, SafetensorError, UnpicklingError, strict) as error:
        raise InputError(f"hf/{name} cannot be had: {error}") from error


def _published(
    transformers: ModuleType, name: str, classes: int, new_head: bool, options: dict[str, Any]
) -> nn.Module:
    """The network with its own weights, refused where some are missing or are for other classes."""
    config = _had(name, transformers.AutoConfig.from_pretrained, name, **options)
    if config.num_labels != classes and not new_head:
        raise InputError(f"hf/{name} is for {config.num_labels} classes, not for {classes}")
    if config.num_labels != classes:
        options = {**options, "num_labels": classes, "ignore_mismatched_sizes": True}
    load = transformers.AutoModelForImageClassification.from_pretrained
    net: nn.Module
    net, found = _had(name, load, name, output_loading_info=True, **options)
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
        "do_center_crop": True,
        "crop_size": dict(zip(("height", "width"), timm_config["input_size"][1:], strict=True)),
    }


def _size(about: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of what the processor hands to the network."""
    size = about.get("crop_size") if about.get("do_center_crop") else about.get("size")
    if isinstance(size, int):
        return size, size
    if not isinstance(size, dict):
        return None
    if "height" in size:
        return size["height"], size["width"]
    edge = size.get("shortest_edge")
    return None if edge is None else (edge, edge)

"""timm's image classifiers, by name."""

import difflib

from poise.checks import InputError
from poise.models.extras import require
from poise.models.normalize import Classifier, Normalize, check_answers, check_colours


def timm_model(
    name: str,
    *,
    classes: int = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = False,
    new_head: bool = False,
) -> Classifier:
    """timm/NAME: any image classifier of timm; needs the extra timm (Wightman 2019).

    The normalisation and the size are those of the weights that timm publishes under that name.

    Args:
        name: timm's name, e.g. "resnet18", "resnet18.a1_in1k".
        classes: how many logits.
        shape: (channels, height, width) of the images.
        pretrained: download those weights; otherwise they are random.
        new_head: another number of classes than theirs gets a random head instead of a refusal.
    """
    timm = require("timm", extra="timm", what=f"timm/{name}")
    check_colours(f"timm/{name}", shape)
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise InputError(f"unknown timm model {name!r}: {_guess(name, timm.list_models())}")
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"timm/{name} cannot be had: {error}") from error
    theirs = net.pretrained_cfg.get("num_classes")
    if pretrained and theirs != classes and not new_head:
        raise InputError(f"the weights of timm/{name} are for {theirs} classes, not for {classes}")
    config = timm.data.resolve_model_data_config(net)
    model = Classifier(
        Normalize(config["mean"], config["std"]), net, tuple(config["input_size"][1:])
    ).eval()
    if model.size != shape[1:]:
        check_answers(f"timm/{name}", model, classes, shape)
    return model


def _guess(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"

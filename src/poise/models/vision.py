"""torchvision's image classifiers, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from poise.checks import InputError
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
    options, own = _options(name, shape), list(best.meta["categories"])
    classes = classes or len(own)
    try:
        net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"torchvision/{name} cannot be built for images of {shape}: {error}") from error
    if pretrained:
        state = _downloaded(name, best, options).state_dict()
        fit(net, state, f"torchvision's weights of {name}", new_head=new_head)
    asked = best.transforms()
    model = Classifier(
        Normalize(asked.mean, asked.std),
        net,
        (asked.crop_size[0],) * 2,
        own if pretrained and classes == len(own) else None,
        preparation(name),
    ).eval()
    if model.size != shape[1:]:
        check_answers(f"torchvision/{name}", model, classes, shape)
    return model


def preparation(name: str) -> Preparation | None:
    """What torchvision's own best weights want done to an image; None not known."""
    from torchvision import models

    asked = models.get_model_weights(known_name(models.list_models(module=models), name, "model")).DEFAULT
    about = asked.transforms()
    way = about.interpolation.value
    if way not in INTERPOLATIONS:
        return None
    return Preparation(size=about.crop_size[0], resize=about.resize_size[0], interpolation=way)


def _options(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
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


def _downloaded(name: str, best: Any, options: dict[str, Any]) -> nn.Module:
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

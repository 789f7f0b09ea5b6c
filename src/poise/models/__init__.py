"""Models: nn.Modules from images in [0, 1] to logits, their normalisation inside."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from poise import user_code
from poise.checks import InputError, check_count
from poise.labels import names_of
from poise.models.hugging_face import hugging_face_model, hugging_face_preparation
from poise.models.identity import fingerprint, from_file
from poise.models.networks import (
    certified_cnn,
    cifar_resnet20,
    cifar_resnet56,
    lenet,
    lenet5_advertorch,
    resnet18,
    resnet50,
    small_cnn,
    wide_resnet50_2,
)
from poise.models.normalize import Classifier, Normalize
from poise.models.onnx_models import onnx
from poise.models.packages import robust_bench, timm_model, timm_preparation, vision, vision_preparation
from poise.models.weight_files import names_in
from poise.models.weights import check_fit, choose_state, fit, head, load_weights, read_weights, width
from poise.modes import TwoClasses
from poise.naming import lookup, nearest
from poise.preparation import Preparation

MODELS: Mapping[str, Callable[..., nn.Module]] = {  # (classes=, shape=) -> a model
    "lenet": lenet,
    "lenet5-advertorch": lenet5_advertorch,
    "certified-cnn": certified_cnn,
    "small-cnn": small_cnn,
    "cifar-resnet20": cifar_resnet20,
    "cifar-resnet56": cifar_resnet56,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wide-resnet50-2": wide_resnet50_2,
}

SOURCES: Mapping[str, Callable[..., nn.Module]] = {  # PREFIX/NAME: (NAME, classes=, shape=, ...) -> a model
    "torchvision": vision,
    "timm": timm_model,
    "hf": hugging_face_model,
    "onnx": onnx,
    "robustbench": robust_bench,
}
PREPARATIONS: Mapping[str, Callable[[str], Preparation | None]] = {  # of the same names
    "torchvision": vision_preparation,
    "timm": timm_preparation,
    "hf": hugging_face_preparation,
}
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".npz", ".py", ".json")
WITH_WEIGHTS = ("hf", "onnx", "robustbench")  # the name alone stands for a trained network


def load(
    name: str,
    *,
    classes: int | None = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    weights: str | Path | None = None,
    new_head: bool = False,
) -> nn.Module:
    """The model of that name, in evaluation mode: images in [0, 1] -> logits.

    Its `class_names` are what its weights say that the logits stand for, in their order, or None.

    Args:
        name: one of MODELS; PREFIX/NAME with a prefix of SOURCES (torchvision/, timm/, hf/, onnx/,
            robustbench/); or FILE.py:FUNCTION or a name that a package offers (`poise.models`), whose
            code is run and which gives the model.
        classes: how many logits; None is as many as the model's own weights have (`own_classes`).
        shape: (channels, height, width) of the images.
        weights: a safetensors file, or a state dict that `torch.load(weights_only=True)` reads;
            "pretrained" for those that torchvision or timm publishes, which are then downloaded. None
            is the model's own where it has some (`comes_with_weights`), or else fresh weights.
        new_head: let the last layer keep fresh weights where the given ones are for other classes, to
            train it.

    Raises:
        InputError: an unknown name, a package or file that is missing, or weights that do not fit.
    """
    if classes is not None:
        check_count("classes", classes, 2)
    elif not own_classes(name, weights):
        raise InputError(f"{name} has no number of classes of its own: name classes")
    file = None if weights in (None, "pretrained") else Path(str(weights))
    if classes is None and file is not None:
        classes = width(load(name, classes=2, shape=shape), file)
    state, what = dict[str, Tensor](), f"the weights in {str(file)!r}"
    _refuse_paths(str(name))
    if is_code(str(name)):
        assert classes is not None  # the weights' if there are some
        model = from_file(name, classes=classes, shape=shape)
    elif "/" in str(name):
        prefix, _, rest = name.partition("/")
        source = lookup(SOURCES, prefix, "source of models")
        pretrained = weights == "pretrained" or (weights is None and comes_with_weights(name))
        model = source(rest, classes=classes, shape=shape, pretrained=pretrained, new_head=new_head)
    else:
        build = lookup(MODELS, name, "model")
        if file is not None:  # memory is asked for once the names and shapes are known to fit
            with torch.device("meta"):
                sketch = build(classes=classes, shape=shape)
            state = choose_state(sketch, file, new_head=new_head)
            check_fit(sketch, state, what, new_head=new_head)
        model = build(classes=classes, shape=shape)
        if weights == "pretrained":
            raise InputError(f"{name} has no published weights: give --weights FILE")
    named = names_of(model)
    if file is not None:
        fit(model, state or choose_state(model, file, new_head=new_head), what, new_head=new_head)
        named = names_in(file) or named
    return with_names(model.eval(), named)


def preparation(name: str, weights: str | Path | None = None) -> Preparation | None:
    """What is done to an image before the model's own published weights see it, where that is known.

    >>> preparation("torchvision/resnet18", "pretrained").resize, preparation("torchvision/resnet18")
    (256, None)
    """
    prefix, _, rest = name.partition("/")
    own = PREPARATIONS.get(prefix.lower())
    published = weights == "pretrained" or (weights is None and comes_with_weights(name))
    return own(rest) if own is not None and published and not is_code(name) else None


def with_names(model: nn.Module, names: Sequence[str] | None) -> nn.Module:
    """The model, its logits standing for classes of these names; None for not known."""
    vars(model)["class_names"] = None if names is None else tuple(names)
    return model


def is_code(name: str) -> bool:
    """Whether the user's own code stands behind the name: FILE.py:FUNCTION, or what a package offers.

    >>> is_code("net.py:build"), is_code("lenet")
    (True, False)
    """
    return user_code.is_own(name, "models", MODELS)


def code_digest(name: str) -> str:
    """A digest of that code (`poise.user_code`)."""
    return user_code.code_hash(name, "models")


def own_classes(name: str, weights: str | Path | None = None) -> bool:
    """Whether what is loaded by that name has a number of classes of its own.

    >>> own_classes("onnx/net.onnx"), own_classes("timm/resnet18", "pretrained"), own_classes("lenet")
    (True, True, False)
    """
    return weights is not None or name.partition("/")[0].lower() in ("hf", "onnx")


def _refuse_paths(name: str) -> None:
    """Answer a bare path, or one that is not there, with what could be written instead.

    Raises:
        InputError: the name is no model's but a path, or looks like one.
    """
    if is_code(name) or name.partition("/")[0].lower() in SOURCES:
        return
    path = Path(name).expanduser()
    if path.is_dir() and (path / "job.json").is_file():
        raise InputError(f"{name!r} is a run folder: load it by poise.load({name!r})")
    if path.is_dir() and (path / "config.json").is_file():
        raise InputError(f"{name!r} is a folder: if it is Hugging Face's, name it as hf/{name}")
    if path.is_file():
        instead = {
            ".py": f"name the function in it that builds the model, {name}:FUNCTION",
            ".onnx": f"name it as onnx/{name}",
            ".json": "name its folder",
        }.get(path.suffix, f"if it has weights, name their network too: --model NAME --weights {name}")
        raise InputError(f"{name!r} is a file and no model's name: {instead}")
    prefix, slash, _ = name.partition("/")
    if path.suffix in FILES or name.startswith((".", "/", "~")) or (slash and not nearest(SOURCES, prefix)):
        raise InputError(
            f"there is no run folder and no file at {name!r}, and as a model's name it would begin with "
            f"{', '.join(f'{known}/' for known in SOURCES)}"
        )


def comes_with_weights(name: str) -> bool:
    """Whether that name, without a file of weights, is a trained model.

    >>> comes_with_weights("hf/google/vit-base-patch16-224"), comes_with_weights("timm/resnet18")
    (True, False)
    """
    return is_code(name) or name.partition("/")[0].lower() in WITH_WEIGHTS


def stands_alone(name: str) -> bool:
    """Whether a model of that name, its weights in a file, is built without other code and downloads.

    Such a name may come from anybody; every other one is taken only from who gives the command.

    >>> [stands_alone(name) for name in ("lenet", "timm/resnet18", "timm/hf-hub:a/b", "hf/a/b", "net.py:f")]
    [True, True, False, False, False]
    """
    prefix, slash, rest = name.partition("/")
    if not slash:
        return prefix.replace("-", "_").lower() in {known.replace("-", "_") for known in MODELS}
    return prefix.lower() in ("torchvision", "timm") and re.fullmatch(r"\w[\w.-]*", rest) is not None


__all__ = [
    "MODELS",
    "SOURCES",
    "Classifier",
    "Normalize",
    "TwoClasses",
    "code_digest",
    "comes_with_weights",
    "fingerprint",
    "fit",
    "head",
    "is_code",
    "lenet",
    "load",
    "load_weights",
    "names_in",
    "own_classes",
    "preparation",
    "read_weights",
    "stands_alone",
    "with_names",
]

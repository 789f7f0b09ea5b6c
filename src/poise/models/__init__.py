"""Models: nn.Modules from images in [0, 1] to logits, their normalisation inside."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from poise.checks import InputError, check_count
from poise.models.certified import certified_cnn
from poise.models.cifar_resnet import cifar_resnet20, cifar_resnet56
from poise.models.hugging_face import hugging_face
from poise.models.lenet import lenet, lenet5_advertorch
from poise.models.normalize import Classifier, Normalize
from poise.models.onnx_models import onnx
from poise.models.robust_bench import robust_bench
from poise.models.small_cnn import small_cnn
from poise.models.small_images import resnet18, resnet50, wide_resnet50_2
from poise.models.timm_models import timm_model
from poise.models.user_file import from_file
from poise.models.vision import vision
from poise.models.weights import fingerprint, fit, head, load_weights, read_weights
from poise.naming import lookup

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
    "hf": hugging_face,
    "onnx": onnx,
    "robustbench": robust_bench,
}
WITH_WEIGHTS = ("hf", "onnx", "robustbench")  # the name alone stands for a trained network


def load(
    name: str,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    weights: str | Path | None = None,
    new_head: bool = False,
) -> nn.Module:
    """The model of that name, in evaluation mode: images in [0, 1] -> logits.

    Args:
        name: one of MODELS; PREFIX/NAME with a prefix of SOURCES (torchvision/, timm/, hf/, onnx/,
            robustbench/); or FILE.py:FUNCTION, which runs that code and takes what it returns.
        classes: how many logits.
        shape: (channels, height, width) of the images.
        weights: a safetensors file, or a state dict that `torch.load(weights_only=True)` reads;
            "pretrained" for those that torchvision or timm publishes, which are then downloaded. None
            is the model's own where it has some (`comes_with_weights`), or else fresh weights.
        new_head: let the last layer keep fresh weights where the given ones are for other classes, to
            train it.

    Raises:
        InputError: an unknown name, a package or file that is missing, or weights that do not fit.
    """
    check_count("classes", classes, 2)
    file = None if weights in (None, "pretrained") else Path(str(weights))
    if ".py:" in str(name):
        model = from_file(name, classes=classes, shape=shape)
    elif "/" in str(name):
        prefix, _, rest = name.partition("/")
        source = lookup(SOURCES, prefix, "source of models")
        pretrained = weights == "pretrained" or (weights is None and comes_with_weights(name))
        model = source(rest, classes=classes, shape=shape, pretrained=pretrained, new_head=new_head)
    else:
        model = lookup(MODELS, name, "model")(classes=classes, shape=shape)
        if weights == "pretrained":
            raise InputError(f"{name} has no published weights: give --weights FILE")
    if file is not None:
        load_weights(model, file, new_head=new_head)
    return model.eval()


def comes_with_weights(name: str) -> bool:
    """Whether that name, without a file of weights, is a trained model.

    >>> comes_with_weights("hf/google/vit-base-patch16-224"), comes_with_weights("timm/resnet18")
    (True, False)
    """
    return ".py:" in name or name.partition("/")[0].lower() in WITH_WEIGHTS


__all__ = [
    "MODELS",
    "SOURCES",
    "Classifier",
    "Normalize",
    "comes_with_weights",
    "fingerprint",
    "fit",
    "head",
    "lenet",
    "load",
    "load_weights",
    "read_weights",
]

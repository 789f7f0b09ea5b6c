"""Normalisation as a model's first layer, so that attacks see pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from poise.checks import BROKEN, InputError
from poise.modes import LogitsAlone, check_one_answer, logits_in
from poise.preparation import Preparation

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x − mean) / std, channel by channel; a grey image is repeated over the channels of the mean.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Somebody's network behind the normalisation that its weights were trained with.

    Args:
        normalize: the first layer.
        net: normalised images -> logits.
        size: (height, width) of the images that its published weights were trained on, where known.
        class_names: what its logits stand for, where its weights say so.
        preparation: what its published weights' own pipeline does to an image first, where known.
    """

    def __init__(
        self,
        normalize: nn.Module,
        net: nn.Module,
        size: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        super().__init__()
        self.normalize, self.net, self.size = normalize, net, size
        self.class_names, self.preparation = class_names, preparation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.normalize(x))
        return out


def check_colours(name: str, shape: tuple[int, int, int]) -> None:
    """Refuse images that are neither grey nor RGB, for a net whose normalisation has three channels."""
    if shape[0] not in (1, 3):
        raise InputError(
            f"{name} takes RGB or grey images, got {shape[0]} channels: name a model that is built for "
            "any number of channels (lenet, resnet18), or FILE.py:FUNCTION of your own"
        )


def check_answers(name: str, net: nn.Module, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The net, which returns a tensor of logits, or as one that does.

    Raises:
        InputError: in evaluation mode it fails on one black image, or has another number of classes.
    """
    check_one_answer(net)
    weight = next(net.parameters(), torch.zeros(()))
    image = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            output = net(image)
    except BROKEN as error:
        size = getattr(net, "size", None)
        hint = f": it was trained on {size[0]}×{size[1]} pixels, prepare the images so" if size else ""
        raise InputError(f"{name} fails on an image of shape {tuple(shape)}{hint} ({error})") from error
    got = tuple(logits_in(output).shape)
    if got != (1, classes):
        single = ", of one logit poise.models.TwoClasses(model) makes two" if got in ((1,), (1, 1)) else ""
        raise InputError(
            f"{name} answers one image with {got}, logits of shape (1, {classes}) are needed{single}"
        )
    return net if isinstance(output, Tensor) else LogitsAlone(net)

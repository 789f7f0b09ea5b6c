"""Models: nn.Modules from images in [0, 1] to logits, their normalisation inside."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from poise.checks import InputError
from poise.models.lenet import lenet
from poise.models.normalize import Normalize
from poise.naming import lookup

MODELS: Mapping[str, Callable[..., nn.Module]] = {  # (classes=, shape=) -> a model
    "lenet": lenet,
}


def load(
    name: str,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    weights: str | Path | None = None,
) -> nn.Module:
    """The model of that name, in evaluation mode, with fresh weights or those of a file.

    Args:
        name: one of MODELS.
        classes: how many logits.
        shape: (channels, height, width) of the images.
        weights: a safetensors file, or a state dict that `torch.load(weights_only=True)` reads.

    Raises:
        InputError: an unknown name, a missing file, or weights that do not fit.
    """
    model = lookup(MODELS, name, "model")(classes=classes, shape=shape)
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()


def load_weights(model: nn.Module, file: Path) -> None:
    """Put a file's tensors into the model; every key must be there and fit. No pickled code runs."""
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        raise InputError(f"no weights at {str(file)!r}: name a .safetensors file or a state dict")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        raise InputError(f"the weights in {str(file)!r} do not fit the model: {error}") from error


__all__ = ["MODELS", "Normalize", "lenet", "load", "load_weights"]

"""Weights from files, put into a model whole or not at all. No pickled code runs."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from poise.checks import BROKEN, InputError

# of DataParallel, Lightning, torch.compile, poise, and timm inside Hugging Face
WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "timm_model.")
INSIDE = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the state dict


def load_weights(model: nn.Module, file: str | Path, *, new_head: bool = False) -> None:
    """Put a file's tensors into the model: every key must be there and fit.

    Prefixes that all of the keys have, as wrappers leave them, count for nothing.

    Args:
        model: what to fill.
        file: safetensors, or what `torch.load(weights_only=True)` reads: a state dict, or a checkpoint
            with one in it.
        new_head: let the model keep its own last layer where the file's has another shape.

    Raises:
        InputError: a missing or damaged file, or one that does not fit; then the model is as before.
    """
    fit(model, read_weights(file), f"the weights in {str(file)!r}", new_head=new_head)


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The named tensors in a file."""
    file = Path(file)
    if not file.is_file():
        raise InputError(f"no weights at {str(file)!r}: name a .safetensors file or a state dict")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (*BROKEN, SafetensorError, UnpicklingError) as error:
        raise InputError(f"the weights in {str(file)!r} cannot be read: {error}") from error
    state = _state_dict(content)
    if state is None:
        raise InputError(f"the weights in {str(file)!r} are no state dict, which maps names to tensors")
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], what: str, *, new_head: bool = False) -> None:
    """Put tensors into the model, or refuse with all that is missing, unexpected or of another shape."""
    own = model.state_dict()
    ours, theirs = unwrapped(own), unwrapped(state)
    free = set(_head_keys(model)) if new_head else set()
    missing = [n for n, key in ours.items() if n not in theirs and not _optional(key, free)]
    unexpected = [n for n in theirs if n not in ours]
    misshapen = [
        f"{n} ({_shape(state[theirs[n]])} there, {_shape(own[key])} in the model)"
        for n, key in ours.items()
        if n in theirs and state[theirs[n]].shape != own[key].shape and key not in free
    ]
    faults = [
        f"{kind}: {', '.join(names)}"
        for kind, names in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        ]
        if names
    ]
    if faults:
        raise InputError(f"{what} do not fit the model: {'; '.join(faults)}")
    taken = {
        key: state[theirs[n]]
        for n, key in ours.items()
        if n in theirs and state[theirs[n]].shape == own[key].shape
    }
    model.load_state_dict({**own, **taken})


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without the wrappers' prefixes that all have, and what it was.

    >>> unwrapped(["module.net.fc.weight", "module.net.fc.bias"])
    {'fc.weight': 'module.net.fc.weight', 'fc.bias': 'module.net.fc.bias'}
    """
    plain = {name: name for name in names}
    while prefix := next((p for p in WRAPPERS if plain and all(n.startswith(p) for n in plain)), None):
        plain = {name.removeprefix(prefix): key for name, key in plain.items()}
    return plain


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 of the model's weights and their names, 16 hexadecimal digits: which weights exactly.

    >>> net = nn.Linear(1, 1)
    >>> before = fingerprint(net)
    >>> _ = net.bias.data.add_(1)
    >>> fingerprint(net) == before
    False
    """
    digest = hashlib.sha256(getattr(model, "digest", "").encode())  # of what is no tensor: an ONNX file
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def head(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the layer that make the logits: the last linear one, or else the last convolution.

    >>> head(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)))
    ('2', Linear(in_features=3, out_features=4, bias=True))
    """
    for kind in (nn.Linear, nn.Conv2d):
        found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kind)]
        if found:
            return found[-1]
    raise InputError("the model has no linear layer and no convolution that could be its head")


def _head_keys(model: nn.Module) -> list[str]:
    name, layer = head(model)
    return [f"{name}.{key}" if name else key for key in layer.state_dict()]


def _optional(key: str, free: set[str]) -> bool:
    """Whether a file may go without it; BatchNorm's counter came late and has no part in an answer."""
    return key in free or key.endswith(".num_batches_tracked")


def _state_dict(content: object) -> dict[str, Tensor] | None:
    """The state dict that a file holds or is; None where there is none."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return dict(content)
    inside = (content.get(name) for name in INSIDE)
    return next((state for state in map(_state_dict, inside) if state is not None), None)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"

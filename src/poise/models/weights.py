"""Weights put into a model whole or not at all: by name, shape and kind, whatever wrapped them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from poise.checks import InputError
from poise.models.weight_files import state_dicts

# of DataParallel, Lightning, torch.compile, poise, timm inside Hugging Face, and of what people name nets
WRAPPERS = (
    *("module.", "model.", "_orig_mod.", "net.", "timm_model.", "_forward_module.", "network."),
    *("backbone.", "encoder.", "ema.", "ema_model.", "student.", "teacher."),
)
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # torchvision's second heads, which are for training only
RENAMED = (  # as torchvision's own loaders do with its first files
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)


def load_weights(model: nn.Module, file: str | Path, *, new_head: bool = False) -> None:
    """Put a file's tensors into the model: every key must be there and fit.

    Prefixes that all of the keys have, as wrappers leave them, count for nothing.

    Args:
        model: what to fill.
        file: safetensors, an npz of arrays, or what `torch.load(weights_only=True)` reads: a state dict,
            or a checkpoint with one in it.
        new_head: let the model keep its own last layer where the file's has another shape.

    Raises:
        InputError: a missing or damaged file, one that does not fit, or one with several state dicts
            that do; then the model is as before.
    """
    fit(model, choose_state(model, file, new_head=new_head), _name_file(file), new_head=new_head)


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The named tensors in a file.

    Raises:
        InputError: a missing or damaged file, or one without a state dict, or with several.
    """
    found = state_dicts(file)
    if len(found) > 1:
        raise InputError(_several(file, found))
    return next(iter(found.values()))


def choose_state(model: nn.Module, file: str | Path, *, new_head: bool = False) -> dict[str, Tensor]:
    """The state dict in the file that fits the model by names, shapes and kinds, or else the first one.

    Raises:
        InputError: a missing or damaged file, or one with several that fit and are not the same.
    """
    found = state_dicts(file)
    fits = {key: state for key, state in found.items() if not _faults(model, state, new_head)}
    states = list(fits.values() or found.values())
    if any(not _same(states[0], other) for other in list(fits.values())[1:]):
        raise InputError(_several(file, fits))
    return states[0]


def width(model: nn.Module, file: str | Path) -> int:
    """How many logits the weights in the file make, in the model's own kind of network.

    Raises:
        InputError: a missing or damaged file, or one without the model's last layer.
    """
    state = choose_state(model, file, new_head=True)
    theirs, (name, _) = _theirs(state, model.state_dict()), head(model)
    last = next(plain for plain, key in unwrap(model.state_dict()).items() if key == f"{name}.weight")
    if last not in theirs:
        raise InputError(f"{_name_file(file)} do not fit the model: missing: {last}")
    return int(state[theirs[last]].shape[0])


def fit(model: nn.Module, state: Mapping[str, Tensor], what: str, *, new_head: bool = False) -> None:
    """Put tensors into the model, or refuse with all that is missing, unexpected or of another shape."""
    check_fit(model, state, what, new_head=new_head)
    own = model.state_dict()
    ours, theirs = unwrap(own), _theirs(state, own)
    taken = {}
    for name, key in ours.items():
        if name in theirs and state[theirs[name]].shape == own[key].shape:
            taken[key] = value = state[theirs[name]].to(own[key].dtype)
            bad = value.isnan() | (value.isinf() & ~own[key].isinf())  # a mask is infinite by itself
            if bool(bad.any()):
                raise InputError(
                    f"{what} are damaged: {int(bad.sum())} of the {value.numel()} numbers of "
                    f"{theirs[name]} are NaN or infinite in {own[key].dtype}"
                )
    model.load_state_dict({**own, **taken})


def check_fit(model: nn.Module, state: Mapping[str, Tensor], what: str, *, new_head: bool = False) -> None:
    """Refuse tensors that do not fit, by names, shapes and kinds alone: the model may lie on `meta`."""
    faults = [f"{kind}: {', '.join(names)}" for kind, names in _faults(model, state, new_head).items()]
    if faults:
        raise InputError(f"{what} do not fit the model: {'; '.join(faults)}")


def _faults(model: nn.Module, state: Mapping[str, Tensor], new_head: bool) -> dict[str, list[str]]:
    """What keeps these tensors from the model, by kind; nothing where they fit."""
    own = model.state_dict()
    ours, theirs = unwrap(own), _theirs(state, own)
    free = set(_head_keys(model)) if new_head else set()
    both = [(n, own[key], state[theirs[n]]) for n, key in ours.items() if n in theirs and key not in free]
    faults = {
        "missing": [n for n, key in ours.items() if n not in theirs and not _optional(key, free)],
        "unexpected": [n for n in theirs if n not in ours],
        "of another shape": [
            f"{n} ({_shape(there)} there, {_shape(here)} in the model)"
            for n, here, there in both
            if here.shape != there.shape
        ],
        "of another kind": [
            f"{n} ({there.dtype} there, {here.dtype} in the model)"
            for n, here, there in both
            if here.is_floating_point() != there.is_floating_point()
            or here.is_complex() != there.is_complex()
        ],
    }
    return {kind: names for kind, names in faults.items() if names}


def _theirs(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, str]:
    """The file's names as the model has them: without wrappers, first names and heads for training."""
    theirs = {}
    for name, key in unwrap(state).items():
        for old, new in RENAMED:
            name = old.sub(new, name)
        theirs[name] = key
    plain = unwrap(own)
    if any(name.startswith(AUXILIARY) for name in plain):
        return theirs
    return {name: key for name, key in theirs.items() if not name.startswith(AUXILIARY)}


def unwrap(names: Iterable[str]) -> dict[str, str]:
    """Each name without the wrappers' prefixes that all have, and what it was.

    >>> unwrap(["module.net.fc.weight", "module.net.fc.bias"])
    {'fc.weight': 'module.net.fc.weight', 'fc.bias': 'module.net.fc.bias'}
    """
    plain = {name: name for name in names}
    while prefix := next((p for p in WRAPPERS if plain and all(n.startswith(p) for n in plain)), None):
        plain = {name.removeprefix(prefix): key for name, key in plain.items()}
    return plain


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


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _several(file: str | Path, found: Iterable[str]) -> str:
    keys = [repr(key) for key in found]
    return (
        f"{_name_file(file)} are several state dicts, {', '.join(keys)}: keep the one that you mean, e.g. "
        f"by torch.save(torch.load(FILE)[{keys[0]}], 'weights.pt')"
    )


def _name_file(file: str | Path) -> str:
    return f"the weights in {str(file)!r}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"

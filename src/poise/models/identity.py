"""Which model exactly: its fingerprint; and a user's own, by the function that builds it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from poise.checks import InputError
from poise.models.normalize import check_answers
from poise.shapes import bytes_of
from poise.user_code import named_in

DEEPEST = 4  # objects within objects, which may hold themselves
_TORCHS = {*vars(nn.Module())}  # attributes of every module, its flag and its tensors among them


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 of what the model computes with, 16 hexadecimal digits: which model exactly.

    Of its weights and buffers by name, those too that no state dict holds; of its modules' kinds; and of
    the numbers, texts, tensors and functions among their attributes, also within lists and other
    objects. A module with a `digest`, as of an ONNX file, is told by that.

    >>> net = nn.Linear(1, 1)
    >>> before = fingerprint(net)
    >>> _ = net.bias.data.add_(1)
    >>> fingerprint(net) == before
    False
    """
    return _module(model, 0)


def _module(model: nn.Module, depth: int) -> str:
    digest = hashlib.sha256()
    for name, value in {**dict(model.named_buffers()), **model.state_dict()}.items():
        digest.update(name.encode() + _bytes(value, depth))
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__} {getattr(module, 'digest', '')}".encode())
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(str(getattr(module, "code", "")).encode())
        elif not hasattr(module, "digest"):
            digest.update(_bytes(_attributes(module), depth))
    return digest.hexdigest()[:16]


def _attributes(of: object) -> dict[str, object]:
    return {name: value for name, value in vars(of).items() if name not in _TORCHS}


def _bytes(value: object, depth: int) -> bytes:
    """The value as bytes; of what has none, its kind."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}".encode() + bytes_of(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.shape} {value.dtype}".encode() + value.tobytes()
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype | np.generic):
        return repr(value).encode()
    if depth == DEEPEST:
        return type(value).__qualname__.encode()
    parts: list[bytes] = []
    if isinstance(value, nn.Module):  # in a list or a dict, where torch does not see it
        parts = [_module(value, depth + 1).encode()]
    elif isinstance(value, partial):
        parts = [_bytes(part, depth + 1) for part in (value.func, value.args, value.keywords)]
    elif isinstance(value, Mapping):
        parts = [_bytes(part, depth + 1) for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple):
        parts = [_bytes(part, depth + 1) for part in value]
    elif isinstance(value, set | frozenset):
        parts = sorted(_bytes(part, depth + 1) for part in value)
    elif isinstance(name := getattr(value, "__qualname__", None), str):  # a function or a class
        parts = [name.encode()]
    elif hasattr(value, "__dict__"):
        parts = [_bytes(_attributes(value), depth + 1)]
    return f"{type(value).__qualname__}(".encode() + b",".join(parts) + b")"


def from_file(name: str, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """What FUNCTION(classes=, shape=) of FILE.py or of a package returns, in evaluation mode.

    The file is run as a Python module: name only code that you trust. The function returns an
    nn.Module from images in [0, 1] of that (channels, height, width) to logits, its weights in it or
    given as a file. Files beside it can be imported while it is read and while the function runs.

    Raises:
        InputError: no such file or function, or what it returns does not answer with logits.
    """
    with named_in(name, "function {name} (classes=, shape=) -> nn.Module", "models") as build:
        _check_takes(name, build)
        net = build(classes=classes, shape=shape)
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} must return an nn.Module, got {type(net).__name__}")
    return check_answers(name, net.eval(), classes, shape)


def _check_takes(name: str, build: Callable[..., object]) -> None:
    """Refuse a function that is not called with classes and shape."""
    try:
        takes = inspect.signature(build)
    except ValueError:  # of some that are written in C
        return
    try:
        takes.bind(classes=2, shape=(1, 1, 1))
    except TypeError as error:
        function = name.rpartition(":")[2]
        raise InputError(
            f"{name} takes {takes}, and is called with classes= and shape=: write "
            f"def {function}(*, classes, shape), shape being (channels, height, width)"
        ) from error

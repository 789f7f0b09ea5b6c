"""A user's own model, by the function that builds it."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from torch import nn

from poise.checks import InputError
from poise.models.normalize import check_answers


def from_file(name: str, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """FILE.py:FUNCTION: what `FUNCTION(classes=, shape=)` in that file returns, in evaluation mode.

    The file is run as a Python module: name only code that you trust. The function returns an
    nn.Module from images in [0, 1] of that (channels, height, width) to logits, its weights in it or
    given as a file. Files beside it can be imported while it is read and while the function runs.

    Raises:
        InputError: no such file or function, or what it returns does not answer with logits.
    """
    path, _, function = name.rpartition(":")
    file = Path(path).resolve()
    if not file.is_file():
        raise InputError(f"no Python file at {path!r}")
    key = hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"poise_user_{key}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path!r} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(file.parent))
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        build = getattr(module, function, None)
        if not callable(build):
            raise InputError(f"{path!r} has no function {function!r} (classes=, shape=) -> nn.Module")
        net = build(classes=classes, shape=shape)
    finally:
        sys.path[:] = before
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} must return an nn.Module, got {type(net).__name__}")
    check_answers(name, net.eval(), classes, shape)
    return net

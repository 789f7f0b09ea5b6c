"""A user's own model, by the function that builds it."""

import inspect
from collections.abc import Callable

from torch import nn

from poise.checks import InputError
from poise.models.normalize import check_answers
from poise.user_code import named_in


def from_file(name: str, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """FILE.py:FUNCTION: what `FUNCTION(classes=, shape=)` in that file returns, in evaluation mode.

    The file is run as a Python module: name only code that you trust. The function returns an
    nn.Module from images in [0, 1] of that (channels, height, width) to logits, its weights in it or
    given as a file. Files beside it can be imported while it is read and while the function runs.

    Raises:
        InputError: no such file or function, or what it returns does not answer with logits.
    """
    with named_in(name, "function {name} (classes=, shape=) -> nn.Module") as build:
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

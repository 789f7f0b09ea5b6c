"""Somebody's model, borrowed and given back: how it is asked, and what its answers and batches mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poise.checks import BROKEN, InputError
from poise.shapes import Images, Labels, Logits, Model


def ask(model: Model, x: Images) -> Any:
    """The model's answer at a copy of the images, itself a copy: how all of poise calls a model.

    A model may write into its input, or give all its answers in one buffer that it fills again.

    >>> x = torch.ones(1, 1, 1, 2)
    >>> ask(lambda x: x.mul_(0.5).flatten(1), x).tolist(), x.flatten().tolist()
    ([[0.5, 0.5]], [1.0, 1.0])
    """
    out: Any = model(x.clone())
    if isinstance(out, torch.Tensor):
        return out.clone()
    return out.copy() if isinstance(out, np.ndarray) else out


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put every submodule in evaluation mode, and give each its own flag back.

    `model.train()` as a way back would thaw layers that the caller had frozen by hand.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1).eval())
    >>> with evaluating(net):
    ...     net[0].training
    False
    >>> net[0].training, net[1].training
    (True, False)
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if getattr(module, "training", False)]  # a frozen one has none
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def differentiable(model: Model) -> Iterator[None]:
    """Evaluation mode with gradients on, also inside `no_grad` and `inference_mode`."""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        yield


MULTI = "multi_label_classification"  # Hugging Face's word for several right classes an image


def call_model(model: Model, x: Images) -> Any:
    """What the model returns for a copy of x, by `modes.ask`.

    Raises:
        InputError: it fails on such images; what it raised is the cause.
    """
    try:
        return ask(model, x)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except BROKEN as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the model fails on images of shape {tuple(x.shape)}: {said}") from error


def logits_in(output: Any) -> Tensor:
    """The logits in what a model returned: itself, its `logits`, or the only tensor in it.

    Raises:
        InputError: there is none, or which one is meant is not clear.

    >>> logits_in({"logits": torch.zeros(1, 2), "features": torch.zeros(1, 9)}).shape
    torch.Size([1, 2])
    """
    if isinstance(output, Tensor | np.ndarray):
        return torch.as_tensor(output)
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = dict(output) if isinstance(output, Mapping) else {}
    parts = dict(enumerate(output)) if isinstance(output, list | tuple) else parts
    tensors = {key: part for key, part in parts.items() if isinstance(part, Tensor)}
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    found = f" of {', '.join(f'{key!r} {tuple(t.shape)}' for key, t in tensors.items())}" if tensors else ""
    key = next(iter(tensors), None)
    way = f"lambda x: model(x)[{key!r}]" if tensors else "lambda x: model(x).logits"
    raise InputError(
        f"the model must return a tensor of logits, got {type(output).__name__}{found}: wrap it, e.g. {way}"
    )


class LogitsAlone(nn.Module):
    """A model that returns more than its logits, as one that returns them alone.

    >>> LogitsAlone(lambda x: (x.flatten(1),))(torch.zeros(1, 1, 1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Tensor:
        return logits_in(self.model(x))


class TwoClasses(nn.Module):
    """A model of one logit z an image as one of two classes: (-z/2, z/2), so that class 1 has σ(z).

    Args:
        model: images -> (n,) or (n, 1); or (n, k) with `column`.
        column: which of several outputs, each of which says yes or no for itself.
        sigmoid: the model returns σ(z) and not z; near 0 and 1 it has lost what z was.

    >>> TwoClasses(lambda x: x.mean(dim=(1, 2, 3)))(torch.ones(1, 1, 2, 2)).tolist()
    [[-0.5, 0.5]]
    """

    def __init__(self, model: Model, *, column: int | None = None, sigmoid: bool = False) -> None:
        super().__init__()
        self.model, self.column, self.sigmoid = model, column, sigmoid

    def forward(self, x: Images) -> Logits:
        z: Tensor = logits_in(self.model(x))
        if self.column is not None:
            z = z[:, self.column]
        if z.shape not in ((len(x),), (len(x), 1)):
            raise InputError(
                f"TwoClasses needs one number an image, got shape {tuple(z.shape)}: name a column"
            )
        z = z.reshape(-1)
        if self.sigmoid:
            tiny = torch.finfo(z.dtype).eps
            z = z.clamp(tiny, 1 - tiny).logit()
        return torch.stack([-z / 2, z / 2], dim=1)


def pair(batch: Any) -> tuple[Images, Labels]:
    """Images and labels of a batch (x, y) or (x, y, ...); labels of shape (n, 1) as (n,).

    Raises:
        InputError: the batch is no such thing.

    >>> [part.shape for part in pair((torch.zeros(2, 1, 4, 4), torch.zeros(2, 1), "more"))]
    [torch.Size([2, 1, 4, 4]), torch.Size([2])]
    """
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        size = f" of {len(batch)}" if isinstance(batch, list | tuple | Mapping) else ""
        raise InputError(
            f"batches must be (x, y) pairs of images and labels, got a {type(batch).__name__}{size}: give "
            "e.g. ((b['image'], b['label']) for b in loader)"
        )
    x, y = batch[0], batch[1]
    if isinstance(y, Tensor) and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    return x, y


def check_one_answer(model: Model) -> None:
    """Refuse a Hugging Face model that is set to give several classes to an image."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if any(isinstance(module, TwoClasses) for module in modules):  # it takes one of them
        return
    for module in modules:
        if getattr(getattr(module, "config", None), "problem_type", None) == MULTI:
            raise InputError(
                f"the model's problem_type is {MULTI!r}: several classes can be right at once, so they "
                "share no confidence; look at one class k at a time, "
                "poise.models.TwoClasses(model, column=k)"
            )

"""A model read as a graph of layers, by watching one forward.

Every torch function that touches what comes from the images is seen, whoever calls it, and must be one of
`READERS`: a branch on a pixel, a detach or a softmax is refused by its name. `torch.fx` finds the same
layers, but refuses models that ask how long a batch is, and is blind to hooks and to plain functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from poise.certify.layers import Add, Affine, Box, Conv, Layer, MaxPool, Pair, Relu, Shape
from poise.checks import InputError
from poise.modes import call_model, logits_in
from poise.shapes import Images, Logits, Model

KNOWN = (
    "Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, mean over an image, BatchNorm and "
    "Dropout in evaluation, Flatten, Identity, Normalize, add, pad, slice, view"
)
TELLS_NO_VALUE = {
    *("size", "dim", "shape", "ndim", "dtype", "device", "numel", "is_floating_point", "requires_grad"),
    *("__len__", "is_cuda", "layout", "register_hook", "is_contiguous", "stride", "__hash__", "grad_fn"),
}
Reader: TypeAlias = Callable[..., Layer | None]  # None: the output is the input


class Node(NamedTuple):
    """A layer, the nodes that it reads, and its output for one image."""

    layer: Layer
    sources: tuple[int, ...]
    shape: Shape
    free: bool = True  # over a box of images its outputs vary each for itself
    exact: bool = True  # over a box of images intervals are as tight as its inputs' bounds allow


class Network(NamedTuple):
    """Layers in the order in which they run: the first is the images, the last one gives the logits."""

    nodes: tuple[Node, ...]

    def box(self, index: int, boxes: list[Box]) -> Box:
        """Where a node's output lies when those before it lie in boxes."""
        layer, sources, *_ = self.nodes[index]
        return layer.box(*(boxes[source] for source in sources))

    def boxes(self, images: Box) -> list[Box]:
        """Where every node's output lies, interval by interval; its very value at single points."""
        found = [images]
        for index in range(1, len(self.nodes)):
            found.append(self.box(index, found))
        return found


def read(model: Model, x: Images, readers: Mapping[str, Reader]) -> tuple[Network, Logits]:
    """The layers that a forward of x goes through, and its logits.

    Raises:
        InputError: a function that `readers` does not know, or logits that do not come from x.
    """
    with Watching(model, x, readers) as watching:
        output = call_model(model, x)
    logits = logits_in(output)
    last = watching.seen.get(id(logits), (0,))[0]
    if last == 0:
        raise InputError(
            "the model's logits do not come from the images by functions of torch (a scripted or ONNX "
            "model, NumPy, an autograd.Function): a certificate needs the network in PyTorch"
        )
    return Network(tuple(watching.nodes[: last + 1])), logits


class Watching(TorchFunctionMode):
    """Notes the layers of one forward, and refuses what is none."""

    def __init__(self, model: Model, x: Images, readers: Mapping[str, Reader]) -> None:
        super().__init__()
        self.model, self.readers, self.n = model, readers, len(x)
        self.nodes = [Node(_entry_by_entry(x, 1.0, 0.0), (), tuple(x.shape[1:]))]  # the images themselves
        self.seen: dict[int, tuple[int, Tensor]] = {id(x): (0, x)}  # kept alive, so that no id comes twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        flowing = [t for t in _tensors([args, kwargs or {}]) if id(t) in self.seen]
        name = (resolve_name(func) or func.__name__).removesuffix(".__get__").split(".")[-1]
        if not flowing or name in TELLS_NO_VALUE:
            return output
        sources = tuple(self.seen[id(t)][0] for t in flowing)
        layer, index = self._layer(name, flowing, output, args, kwargs or {}), sources[0]
        if layer is not None:
            index = len(self.nodes)
            self.nodes.append(self._node(layer, sources, output))
        self.seen[id(output)] = (index, output)
        return output

    def _node(self, layer: Layer, sources: tuple[int, ...], output: Tensor) -> Node:
        free = len(sources) == 1 and self.nodes[sources[0]].free
        exact = free or not isinstance(layer, Affine | Add)
        return Node(layer, sources, tuple(output.shape[1:]), free and layer.free, exact)

    def _layer(self, name: str, flowing: list[Tensor], output: Any, args: Any, kwargs: Any) -> Layer | None:
        if name in ADDING and len(flowing) == 2 and flowing[0].shape == flowing[1].shape and not kwargs:
            return Add()
        if name in COMMUTE and args[0] is not flowing[0]:
            args = args[::-1]
        try:
            if name not in self.readers:
                raise InputError(f"what is read is {KNOWN}")
            reader = self.readers[name]
            inspect.signature(reader).bind(*args, **kwargs)
            if len(flowing) > 1 or args[0] is not flowing[0] or len(output) != self.n:
                raise InputError(
                    "one argument, the first, may come from the images, and every image by itself"
                )
            return reader(*args, **kwargs)
        except (InputError, TypeError) as error:
            raise InputError(f"a certificate cannot read {name}{self._place()}: {error}") from error

    def _place(self) -> str:
        """The innermost module that is running, by its name."""
        names = (
            {id(m): n for n, m in self.model.named_modules()} if isinstance(self.model, nn.Module) else {}
        )
        running = (names.get(id(frame.frame.f_locals.get("self"))) for frame in inspect.stack())
        return next((f" in {name!r}" for name in running if name), "")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layer:
    stride, dilation = _pair(stride), _pair(dilation)
    corner = (0, 0) if padding == "valid" else padding
    if padding == "same":
        corner = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    options = stride, padding, dilation, groups
    return Conv(
        apply=lambda x: F.conv2d(x, weight, bias, *options),
        widen=lambda r: F.conv2d(r, weight.abs(), None, *options),
        size=weight.numel(),
        weight=weight,
        stride=stride,
        padding=_pair(corner),
        dilation=dilation,
        groups=groups,
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layer:
    if input.ndim != 2:
        raise InputError(f"features of shape (n, features) are read, got {tuple(input.shape)}")
    return Affine(
        apply=lambda x: F.linear(x, weight, bias),
        widen=lambda r: F.linear(r, weight.abs()),
        size=weight.numel(),
    )


def _relu(input: Tensor, inplace: bool = False) -> Layer:
    return Relu()


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Layer:
    if _pair(dilation) != (1, 1) or ceil_mode:
        raise InputError("max-pooling is read without dilation and ceil_mode")
    return MaxPool(_pair(kernel_size), _pair(stride or kernel_size), _pair(padding))


def _avg_pool2d(input: Tensor, *options: Any, **more: Any) -> Layer:
    return _fix(lambda x: F.avg_pool2d(x, *options, **more))


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Layer:
    return _fix(lambda x: F.adaptive_avg_pool2d(x, output_size))


def _mean(input: Tensor, dim: Any = (), keepdim: bool = False) -> Layer:
    dims = [d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)]
    if 0 in dims or not dims:
        raise InputError("it is a mean over several images")
    return _fix(lambda x: x.mean(dims, keepdim))


def batch_norm(*, by_batch: bool = False) -> Reader:
    """The reader of BatchNorm: (x − mean) / √(var + eps) · weight + bias, channel by channel.

    In training mode its statistics are those of the clean batch, so that an image's logits hang on others:
    that is read where `by_batch` is true, for losses, and refused elsewhere.
    """

    def reader(
        input: Tensor,
        running_mean: Any,
        running_var: Any,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Layer:
        mean, var = running_mean, running_var
        if training and not by_batch:
            raise InputError(
                "it normalises by the batch's own statistics, so that an image's logits hang on others"
            )
        if training:
            over = [0, *range(2, input.ndim)]
            mean, var = input.mean(over), input.var(over, correction=0)
        scale = (var + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        channels = (1, -1) + (1,) * (input.ndim - 2)
        return _entry_by_entry(input, scale.reshape(channels), shift.reshape(channels))

    return reader


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> None:
    if training and p:
        raise InputError("it is at work: put the model in evaluation mode, or take p=0")


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Layer:
    if mode != "constant" or len(pad) > 2 * (input.ndim - 1):
        raise InputError(f"constant padding of images is read, got mode={mode!r} and pad={tuple(pad)}")
    return _fix(lambda x: F.pad(x, pad, value=value), free=True)


def _slice(input: Tensor, index: Any) -> Layer:
    parts = index if isinstance(index, tuple) else (index,)
    if parts[0] != slice(None) or not all(isinstance(part, slice | int | None) for part in parts):
        raise InputError(f"slices [:, ...] of every image are read, got {index!r}")
    return _fix(lambda x: x[index], free=True)


def _view(input: Tensor, *shape: Any, **named: Any) -> Layer:
    return _reshape(torch.empty(input.shape, device="meta").reshape(*shape, **named))


def _flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Layer:
    return _reshape(torch.empty(input.shape, device="meta").flatten(start_dim, end_dim))


def _reshape(like: Tensor) -> Layer:
    return _fix(lambda x: x.reshape(len(x), *like.shape[1:]), free=True)


def _fix(function: Callable[[Tensor], Tensor], *, free: bool = False) -> Layer:
    """A linear layer without weights, none of its numbers negative."""
    return Affine(
        apply=function, widen=lambda r: function(r) - function(torch.zeros_like(r[:1])), free=free
    )


def _entry_by_entry(input: Tensor, scale: Any, shift: Any) -> Layer:
    """An image times a constant plus a constant, the same for every image."""
    scale, shift = (torch.as_tensor(v, dtype=input.dtype, device=input.device) for v in (scale, shift))
    if any(v.ndim > input.ndim or (v.ndim == input.ndim and len(v) > 1) for v in (scale, shift)):
        raise InputError("its constant has a batch of its own")
    shape = torch.broadcast_shapes(input.shape, scale.shape, shift.shape)
    local = all(v.shape[-2:].numel() == 1 for v in (scale, shift))  # the same for every pixel
    return Affine(
        apply=lambda x: x * scale + shift,
        widen=lambda r: r * scale.abs() + torch.zeros_like(shift),
        local=local and input.ndim == 4,
        free=shape == input.shape,
    )


def _same(input: Tensor, *options: Any, **more: Any) -> None:
    """A copy, another layout in memory, or another precision: bounds are of real numbers."""


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


ADDING, COMMUTE = ("add", "add_"), ("add", "add_", "mul")
READERS: Mapping[str, Reader] = {
    "conv2d": _conv2d,
    "linear": _linear,
    **dict.fromkeys(("relu", "relu_"), _relu),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "batch_norm": batch_norm(),
    **dict.fromkeys(("dropout", "dropout2d"), _dropout),
    "pad": _pad,
    "__getitem__": _slice,
    **dict.fromkeys(("view", "reshape"), _view),
    "flatten": _flatten,
    **dict.fromkeys(("add", "add_"), lambda input, other: _entry_by_entry(input, 1.0, other)),
    **dict.fromkeys(("sub", "sub_"), lambda input, other: _entry_by_entry(input, 1.0, -other)),
    "rsub": lambda input, other: _entry_by_entry(input, -1.0, other),
    **dict.fromkeys(("mul", "mul_"), lambda input, other: _entry_by_entry(input, other, 0.0)),
    **dict.fromkeys(("div", "div_"), lambda input, other: _entry_by_entry(input, 1 / other, 0.0)),
    **dict.fromkeys(("contiguous", "clone", "float", "double", "bfloat16", "half", "to"), _same),
}

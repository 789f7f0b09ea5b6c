"""A model's copy made ready for many input gradients: frozen, folded, packed, in the faster layout.

Whatever is done to the copy has to leave its logits and its input gradient as they were, on the very
batch; what does not is undone, and a note says so. The caller's model is never touched.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from poise.fast.packed import PackedConv2d, packable
from poise.modes import ask, differentiable
from poise.shapes import Images, Logits, Model

LOGITS, GRADIENT = 1e-3, 0.1  # what rounding may change, relative to the largest logit and to the gradient
FAILURES = (  # what a model that cannot be copied, or not be run as a copy, raises
    AssertionError,
    AttributeError,
    LookupError,  # it keeps its own modules or tensors in a table
    RuntimeError,  # deepcopy of a tensor with a graph; an operator without this dtype or layout
    TypeError,  # deepcopy of a lock, a file or a session
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Net:
    """A prepared copy: images in, logits in float32 out."""

    net: nn.Module
    dtype: torch.dtype
    layout: torch.memory_format

    def __call__(self, x: Images) -> Logits:
        logits: Logits = self.net(x.to(dtype=self.dtype, memory_format=self.layout)).float()
        return logits


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model has been turned into for one shape of batch, and why not more.

    Args:
        full: in the model's own precision.
        low: in bfloat16, or None.
        notes: one sentence for each thing that was tried and left out.
        parts: the model itself and its modules, and
        state: its tensors as they were, to tell whether it has changed since.
    """

    full: Model
    low: Model | None
    notes: tuple[str, ...]
    parts: tuple[Model, ...]
    state: tuple[Tensor, ...]

    def fits(self, model: Model) -> bool:
        """Whether this is the model that was prepared, its weights and buffers bit for bit as they were."""
        now, own = tensors(model), parts(model)
        if len(own) != len(self.parts) or any(a is not b for a, b in zip(own, self.parts, strict=True)):
            return False
        return len(now) == len(self.state) and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))
            for a, b in zip(now, self.state, strict=True)
        )


def prepare(model: Model, x: Images, logits: Logits, *, low: bool) -> Prepared:
    """The model made ready for batches like x, at which it gives these logits.

    Args:
        model: images in [0, 1] -> logits; no nn.Module, or one with parameters of another dtype than
            x, is used as it is.
        x: images (n, c, h, w) in float32.
        logits: the model's own at x (n, k).
        low: whether a copy in bfloat16 is wanted.
    """
    notes: list[str] = []
    was = parts(model), tuple(t.detach().clone() for t in tensors(model))
    if not isinstance(model, nn.Module):
        return Prepared(model, None, (f"{type(model).__name__} is no nn.Module: used as it is",), *was)
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {x.dtype}
    if other:
        named = ", ".join(sorted(str(dtype) for dtype in other))
        note = f"{type(model).__name__} has parameters of {named}, the images are {x.dtype}: used as it is"
        return Prepared(model, None, (note,), *was)
    with differentiable(model):
        want = slope(model, x, logits)

    def right(net: Net) -> bool:
        with torch.no_grad():
            off = (ask(net, x) - logits).abs().amax() / logits.abs().amax().clamp_min(1)
        turn = (slope(net, x, logits) - want).norm() / want.norm().clamp_min(1e-30)
        return bool(off <= LOGITS) and bool(turn <= GRADIENT)

    def bare() -> nn.Module:
        return copy.deepcopy(model).eval().requires_grad_(False)

    def attempt(name: str, make: Callable[[], nn.Module]) -> nn.Module | None:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                net = make()
                if right(Net(net, x.dtype, torch.contiguous_format)):
                    return net
            notes.append(f"{name}: its logits or gradients differ")
        except FAILURES as error:
            notes.append(f"{name}: {type(error).__name__}: {error}")
        return None

    plain = attempt("copied", bare)
    if plain is None:
        return Prepared(model, None, tuple(notes), *was)
    base = attempt("folded", lambda: fold(bare(), x)) or plain
    packs = attempt("packed", lambda: pack(copy.deepcopy(base), x)) is not None
    with torch.inference_mode(False), torch.enable_grad():
        full, spent = faster(base, x, logits, x.dtype, packs=packs)
        half = None
        if low:
            try:
                half, less = faster(base, x, logits, torch.bfloat16, packs=packs)
            except FAILURES as error:
                notes.append(f"bf16: {type(error).__name__}: {error}")
            else:
                half = half if less < spent else None
                notes += [] if half else ["bf16: not faster on this machine"]
    return Prepared(full, half, tuple(notes), *was)


def parts(model: Model) -> tuple[Model, ...]:
    """The model and, of an nn.Module, all modules in it."""
    return tuple(model.modules()) if isinstance(model, nn.Module) else (model,)


def tensors(model: Model) -> list[Tensor]:
    """All parameters and buffers."""
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def slope(model: Model, x: Images, logits: Logits) -> Images:
    """The input gradient of the predicted class's logit, less the mean of all."""
    at = x.detach().requires_grad_()
    z = ask(model, at)
    own = z.gather(1, logits.argmax(dim=1, keepdim=True))
    return torch.autograd.grad((own - z.mean(dim=1, keepdim=True)).sum(), at)[0]


def faster(
    base: nn.Module, x: Images, logits: Logits, dtype: torch.dtype, *, packs: bool, tries: int = 2
) -> tuple[Net, float]:
    """The copy in the memory layout in which a step takes less time, and that time in seconds."""
    timed = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = convert_conv2d_weight_memory_format(copy.deepcopy(base).to(dtype), layout)
        ready = Net(pack(net, x.to(dtype)) if packs else net, dtype, layout)
        timed.append((min(seconds(ready, x, logits) for _ in range(tries + 1)), ready))
    spent, best = min(timed, key=lambda pair: pair[0])
    return best, spent


def seconds(model: Model, x: Images, logits: Logits) -> float:
    """The time of one step."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    began = time.perf_counter()
    slope(model, x, logits).flatten()[0].item()  # waits for the device
    return time.perf_counter() - began


def fold(net: nn.Module, x: Images) -> nn.Module:
    """The net, each BatchNorm that is fed by one convolution and by nothing else folded into it.

    What feeds what is seen in a forward at x. A module that is called twice or has hooks is let alone.
    """
    calls = _calls(net, x, (nn.Conv2d, nn.BatchNorm2d))
    once = {name: call[0] for name, call in calls.items() if len(call) == 1}
    made = {id(out): name for name, (_, out) in once.items() if type(net.get_submodule(name)) is nn.Conv2d}
    for name, (given, _) in once.items():
        norm = net.get_submodule(name)
        feeder = made.get(id(given))
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or feeder is None:
            continue
        conv = net.get_submodule(feeder)
        assert isinstance(conv, nn.Conv2d)
        _put(net, feeder, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        _put(net, name, nn.Identity())
    return net


def pack(net: nn.Module, x: Images) -> nn.Module:
    """The net with its convolutions packed, where oneDNN has them: on the CPU."""
    if x.device.type != "cpu":
        return net
    for name, calls in _calls(net, x, (nn.Conv2d,)).items():
        conv = net.get_submodule(name)
        if isinstance(conv, nn.Conv2d) and packable(conv):
            _put(net, name, PackedConv2d(conv, calls[0][0].shape))
    return net


def _calls(net: nn.Module, x: Images, kinds: tuple[type, ...]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Input and output of every call of modules of exactly these kinds that have no hooks."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for name, module in net.named_modules():
        if type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks):

            def note(_: nn.Module, given: tuple[Tensor], out: Tensor, name: str = name) -> None:
                calls.setdefault(name, []).append((given[0], out))

            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            ask(net, x)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of that name, and every other name it goes by."""
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)

"""A model's copy made ready for many input gradients: frozen, folded, in one memory layout.

Whatever is done to the copy has to leave its logits and its input gradient as they were, on the very
batch; what does not is undone, and a note says so. The caller's model is never touched. Copies are kept
while the model lives, and made anew when it has changed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from poise.modes import ask, differentiable
from poise.shapes import Images, Logits, Model

Layout: TypeAlias = Literal["auto", "contiguous", "channels_last"]
LAYOUTS: Mapping[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
LOGITS, GRADIENT = 1e-3, 0.1  # what rounding may change, relative to the largest logit and to the gradient
FAILURES = (  # what a model that cannot be copied, or not be run as a copy, raises
    AssertionError,
    AttributeError,
    LookupError,  # it keeps its own modules or tensors in a table
    RuntimeError,  # deepcopy of a tensor with a graph; an operator without this dtype or layout
    TypeError,  # deepcopy of a lock, a file or a session
    ValueError,
)
MOST = 4  # copies that are kept for a model, each for another shape of batch or way of preparing


@dataclass(frozen=True, eq=False)
class Net:
    """A prepared copy: images in, logits in float32 out."""

    net: nn.Module
    dtype: torch.dtype
    layout: str

    def __call__(self, x: Images) -> Logits:
        logits: Logits = self.net(x.to(dtype=self.dtype, memory_format=LAYOUTS[self.layout])).float()
        return logits


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model has been turned into, and why not more; it does not keep the model alive.

    Args:
        full: in the model's own precision; None where the model is used as it is.
        low: in bfloat16, or None.
        notes: one sentence for each thing that was chosen, or tried and left out.
        parts: the model's modules, and
        state: its tensors as they were, to tell whether it has changed since.
    """

    full: Model | None
    low: Model | None
    notes: tuple[str, ...]
    parts: tuple[ReferenceType[nn.Module], ...] = ()
    state: tuple[Tensor, ...] = ()

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has its modules of then, weights and buffers bit for bit as they were."""
        now, own = tensors(model), list(model.modules())
        return (
            len(own) == len(self.parts)
            and all(was() is module for was, module in zip(self.parts, own, strict=True))
            and len(now) == len(self.state)
            and all(
                a.dtype == b.dtype and a.device == b.device for a, b in zip(now, self.state, strict=True)
            )
            and all(bool(torch.equal(a, b)) for a, b in zip(now, self.state, strict=True))
        )


_kept: WeakKeyDictionary[nn.Module, dict[Any, Prepared]] = WeakKeyDictionary()


def copy_for(model: Model, x: Images, logits: Logits, *, low: bool, layout: Layout) -> Prepared:
    """The model made ready for batches like x: as it was before, if it has not changed since."""
    if not isinstance(model, nn.Module):
        return prepare(model, x, logits, low=low, layout=layout)
    known = _kept.setdefault(model, {})
    key = x.shape, x.dtype, x.device, low, layout
    found = known.pop(key, None)
    if found is None or not found.fits(model):
        found = prepare(model, x, logits, low=low, layout=layout)
    known[key] = found  # the last ones stay
    for old in list(known)[:-MOST]:
        del known[old]
    return found


def notes_on(model: Model) -> tuple[str, ...]:
    """What was chosen, or tried and left out, when the model was prepared, one sentence each."""
    if not isinstance(model, nn.Module):
        return prepare(model, torch.empty(0), torch.empty(0), low=False, layout="auto").notes
    return tuple(dict.fromkeys(note for each in _kept.get(model, {}).values() for note in each.notes))


def prepare(model: Model, x: Images, logits: Logits, *, low: bool, layout: Layout) -> Prepared:
    """The model made ready for batches like x, at which it gives these logits.

    Args:
        model: images in [0, 1] -> logits; no nn.Module, or one with parameters of another dtype than
            x, is used as it is.
        x: images (n, c, h, w) in float32.
        logits: the model's own at x (n, k).
        low: whether a copy in bfloat16 is wanted.
        layout: of the copies in memory; "auto" times both and takes the faster, and leaves bfloat16
            where it is not faster.
    """
    if not isinstance(model, nn.Module):
        return Prepared(None, None, (f"{type(model).__name__} is no nn.Module: used as it is",))
    was = tuple(map(ref, model.modules())), tuple(t.detach().clone() for t in tensors(model))
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {x.dtype}
    if other:
        named = ", ".join(sorted(str(dtype) for dtype in other))
        note = f"{type(model).__name__} has parameters of {named}, the images are {x.dtype}: used as it is"
        return Prepared(None, None, (note,), *was)
    with differentiable(model):
        want = slope(model, x, logits)
    notes: list[str] = []

    def bare() -> nn.Module:
        return copy.deepcopy(model).eval().requires_grad_(False)

    def attempt(name: str, make: Callable[[], nn.Module]) -> nn.Module | None:
        try:
            with torch.enable_grad():
                net = make()
                if _alike(Net(net, x.dtype, "contiguous"), x, logits, want):
                    return net
            notes.append(f"{name}: its logits or gradients differ")
        except FAILURES as error:
            notes.append(f"{name}: {type(error).__name__}: {error}")
        return None

    plain = attempt("copied", bare)
    if plain is None:
        return Prepared(None, None, tuple(notes), *was)
    base = attempt("folded", lambda: fold(bare(), x)) or plain
    with torch.enable_grad():
        full, spent = faster(base, x, logits, x.dtype, layout)
        notes.append(f"layout: {full.layout}")
        half = None
        if low:
            try:
                half, less = faster(base, x, logits, torch.bfloat16, layout)
            except FAILURES as error:
                notes.append(f"bf16: {type(error).__name__}: {error}")
            else:
                half = half if layout != "auto" or less < spent else None
                notes.append(f"bf16 layout: {half.layout}" if half else "bf16: not faster on this machine")
    return Prepared(full, half, tuple(notes), *was)


def _alike(net: Net, x: Images, logits: Logits, want: Images) -> bool:
    """Whether the copy has these logits and this gradient, but for rounding."""
    with torch.no_grad():
        off = (ask(net, x) - logits).abs().amax() / logits.abs().amax().clamp_min(1)
    turn = (slope(net, x, logits) - want).norm() / want.norm().clamp_min(1e-30)
    return bool(off <= LOGITS) and bool(turn <= GRADIENT)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))


def tensors(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def slope(model: Model, x: Images, logits: Logits) -> Images:
    """The input gradient of the predicted class's logit, less the mean of all."""
    at = x.detach().requires_grad_()
    z = ask(model, at)
    own = z.gather(1, logits.argmax(dim=1, keepdim=True))
    return torch.autograd.grad((own - z.mean(dim=1, keepdim=True)).sum(), at)[0]


def faster(
    base: nn.Module, x: Images, logits: Logits, dtype: torch.dtype, layout: Layout
) -> tuple[Net, float]:
    """The copy in that memory layout, or by "auto" in the faster one, and seconds of one step in it."""
    timed = []
    for name in LAYOUTS if layout == "auto" else (layout,):
        net = convert_conv2d_weight_memory_format(copy.deepcopy(base).to(dtype), LAYOUTS[name])
        ready = Net(net, dtype, name)
        slope(ready, x, logits)  # it may not run in this precision; and what happens once is over
        timed.append(
            (min(time_step(ready, x, logits) for _ in range(2)) if layout == "auto" else 0.0, ready)
        )
    spent, best = min(timed, key=lambda pair: pair[0])
    return best, spent


def time_step(model: Model, x: Images, logits: Logits) -> float:
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

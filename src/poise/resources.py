"""What a call takes of the machine: threads of arithmetic, and memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from poise.checks import InputError
from poise.modes import call_model, evaluating
from poise.shapes import Images, Model

ROOM = 2**30  # bytes that a batch's activations may take
SHARE = 2**23  # multiply-adds of a layer for each thread: with fewer it waits more than it works
_CHOSEN = Lock()  # held by the outermost call, which chooses for all in it
_TRIM, _MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_LARGEST = 2**25  # bytes: the most that glibc lets its own threshold of mmap grow to


@contextmanager
def using(threads: int | Callable[[], int] | None) -> Iterator[None]:
    """Compute with so many threads, and have glibc keep what is freed; both are given back at the end.

    Within another such call, that one's choice stays. glibc's rule by which its thresholds grow cannot
    be had back: they are left where it would have taken them.

    Args:
        threads: how many; or what says how many suit, and is asked only where the user has not said it (by
            OMP_NUM_THREADS, MKL_NUM_THREADS, or `torch.set_num_threads` to another number than torch
            begins with). Never more than there were. None changes nothing.
    """
    if threads is None or not _CHOSEN.acquire(blocking=False):
        yield
        return
    before = torch.get_num_threads()
    try:
        if not isinstance(threads, int):
            threads = before if before == 1 or _is_said(before) else min(before, max(1, threads()))
        _keep_freed(2**31 - 1)
        _set_threads(threads)
        yield
    finally:
        _set_threads(before)
        _keep_freed(2 * _LARGEST)
        _CHOSEN.release()


def suit_threads(model: Model, x: Images, *, images: int) -> int:
    """Threads for batches of so many images like these: one for every SHARE multiply-adds of a mean layer.

    No stopwatch: the same work gives the same number on every machine, and sums are cut the same way.
    A model on a GPU, or whose arithmetic is not torch's own, keeps the threads that there are.

    >>> suit_threads(torch.nn.Conv2d(1, 8, 4), torch.zeros(2, 1, 35, 35), images=2**8)  # 2^17 an image
    4
    """
    if x.device.type != "cpu":
        return torch.get_num_threads()
    work = _Work()
    with evaluating(model), torch.random.fork_rng(devices=()), torch.no_grad(), work:
        call_model(model, x)
    if not work.layers:
        return torch.get_num_threads()
    return work.sums * images // (len(x) * work.layers * SHARE)


def fitting(model: Model, x: Images, *, most: int) -> int:
    """Images a batch, at most so many, for a way back through the model that keeps ROOM bytes on the CPU.

    Counted on two images like these and on one: what does not grow with the batch, as weights, is left out.

    >>> fitting(torch.nn.Tanh(), torch.zeros(2, 1, 2**13, 2**13), most=128)  # 2^28 bytes an image
    4
    """
    if x.device.type != "cpu" or len(x) < 2:
        return most
    try:
        one, two = (_kept_for_gradients(model, x[:n]) for n in (1, 2))
    except InputError:  # a black box has no way back; whatever else is wrong is said by who asks it next
        return most
    return min(most, max(1, ROOM // max(1, two - one)))


def _kept_for_gradients(model: Model, x: Images) -> int:
    """Bytes that a forward pass keeps for the way back."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with evaluating(model), torch.random.fork_rng(devices=()), torch.enable_grad(), hooks:
        call_model(model, x.detach().clone().requires_grad_())
    return sum(sizes)


class _Work(TorchDispatchMode):
    """Counts the multiply-adds of what torch computes meanwhile, and the layers that make them."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.sums: int = 0
        self.layers: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if flops := flop_registry.get(func.overloadpacket):
            self.sums += flops(*args, **(kwargs or {}), out_val=out) // 2
            self.layers += 1
        return out


def _is_said(threads: int) -> bool:
    """Whether the user has said how many threads: torch begins with one a processor, or a pair of them."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    named = not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}.isdisjoint(os.environ)
    return named or threads not in (here, (here + 1) // 2)


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _keep_freed(size: int) -> None:
    """Have glibc keep so many bytes of freed memory, and take all but the largest tensors from there.

    Else they come as new pages each time, whose faults are a third of what a small net takes. Nothing
    happens without glibc, nor where the user has set its options.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP, _LARGEST)
        mallopt(_TRIM, size)

"""Several processes at one task, a device each, by Lightning Fabric: how they start, meet and end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from poise.checks import InputError, RefusedError, check_choice, check_count

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # of a process that waits for the others, whose batches may take hours

DEATH = 1  # Linux's PR_SET_PDEATHSIG: the signal to this process when the one that started it ends


def fabric_of(
    *,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str | DDPStrategy = "auto",
    accelerator: str = "auto",
    precision: str = "32-true",
) -> Fabric:
    """A Fabric: one device, or several by one process each; under torchrun as many as that says.

    Raises:
        InputError: devices that are not there.
    """
    if torch.distributed.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        devices, nodes = devices or local, nodes or world // local
        strategy = "ddp" if isinstance(strategy, str) else strategy
    devices, nodes = 1 if devices is None else devices, 1 if nodes is None else nodes
    check_count("devices", devices, 1)
    check_count("nodes", nodes, 1)
    asked: dict[str, Any] = {"strategy": strategy, "precision": precision}
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, **asked)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(
            f"devices={devices}, accelerator={accelerator!r} cannot be had: {error}"
        ) from error


def sharing(*, devices: int | None = 1, accelerator: str = "auto") -> Fabric:
    """A Fabric whose processes share images out, and meet over the CPU: nothing else is exchanged.

    Args:
        devices: processes, one a GPU; None takes all GPUs in sight. Under torchrun as many as that says.
        accelerator: "auto" takes GPUs where there are some, else "cpu" or "cuda".

    Raises:
        InputError: devices that are not there.
    """
    check_choice("accelerator", accelerator, ("auto", "cpu", "cuda"))
    there = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if accelerator == "cuda" and not there:
        raise InputError("accelerator='cuda' needs a GPU, and none is in sight: take 'cpu' or 'auto'")
    if devices is not None:
        check_count("devices", devices, 1)
        if there and devices > there:
            raise InputError(f"devices={devices}, and there are {there} GPUs: take --devices {there}")
    elastic = torch.distributed.is_torchelastic_launched()
    devices = None if elastic else devices or max(1, there)
    several = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    strategy = "auto" if devices == 1 else several
    return fabric_of(devices=devices, strategy=strategy, accelerator="cuda" if there else "cpu")


@contextmanager
def at_work(fabric: Fabric) -> Iterator[None]:
    """Start the fabric's processes, each with the threads that one alone would have.

    Another one ends with the first, however that does: then it is told by SIGTERM. Within another such
    call nothing happens.
    """
    threads, said = torch.get_num_threads(), "OMP_NUM_THREADS" in os.environ
    fabric.launch()
    if not said and "OMP_NUM_THREADS" in os.environ:  # Lightning divides them, and sums change
        del os.environ["OMP_NUM_THREADS"]
        torch.set_num_threads(threads)
    if not fabric.is_global_zero and sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH, signal.SIGTERM)
    try:
        yield
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.terminate()
        raise


def by_first(fabric: Fabric, work: Callable[[], T]) -> T:
    """What the first process's work gives, handed to all; if it is refused, all are."""
    if fabric.world_size == 1:
        return work()
    said: Any = None
    if fabric.is_global_zero:
        try:
            said = (work(), None)
        except InputError as error:
            said = (None, str(error))
    result: T
    result, refusal = fabric.broadcast(said)
    _raise_for_all(fabric, refusal)
    return result


def by_all(fabric: Fabric, work: Callable[[], object]) -> None:
    """Do every process's work, and wait until all have done theirs; if one is refused, all are."""
    if fabric.world_size == 1:
        work()
        return
    refusals: list[str | None] = [None] * fabric.world_size
    own = None
    try:
        work()
    except InputError as error:
        own = str(error)
    torch.distributed.all_gather_object(refusals, own)
    _raise_for_all(fabric, next((text for text in refusals if text is not None), None))


def turn(number: int, processes: int) -> int:
    """Whose the piece of work of that number is: each one's as often, also of every second or eighth piece.

    The sum of the number's digits to that base (Thue and Morse have 2): where a costly piece comes
    every so often, counting around would leave it to the same process each time.

    >>> [turn(n, 2) for n in range(8)], [turn(n, 3) for n in range(9)]
    ([0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 2, 1, 2, 0, 2, 0, 1])
    """
    total = 0
    while number and processes > 1:
        number, digit = divmod(number, processes)
        total += digit
    return total % processes


def _raise_for_all(fabric: Fabric, refusal: str | None) -> None:
    if refusal is not None:
        raise InputError(refusal) if fabric.is_global_zero else RefusedError(refusal)

"""What kill -9, SIGTERM, a full disk and a second command cost an audit and an evaluation.

python benchmarks/stops.py --moments 20 --every 0.2

A linear net on digits, in processes that are forked from this one. Each is killed at a random moment of the
time that a whole run takes, and the same call is made again. Lost are images that were told as done under
an attack, and of which there are no records. Records are kept every half a minute, for runs of hours; for
one of seconds `--every` says how often.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import poise
from poise import attacks, data
from poise.auditing import kept
from poise.auditing.audit import audit

CONTEXT: Any = multiprocessing.get_context("fork")  # polars must not be used before: it hangs in a fork
SIZE = {"images": 96, "eps": (0.05, 0.1)}


def one_audit(out: Path, net: nn.Module, tell: Callable[..., object]) -> None:
    poise.audit(net, data.load("digits", batch_size=8), out=out, threshold=0.2, progress=tell, **SIZE)


def one_evaluation(out: Path, net: nn.Module, tell: Callable[..., object]) -> None:
    chosen = {name: attacks.build(name, eps=0.1, steps=100) for name in ("pgd", "adaptive", "auto")}
    audit(net, data.load("digits", images=96, batch_size=8), chosen, out, progress=tell)


KINDS = {"audit": one_audit, "evaluate": one_evaluation}


def begin(kind: str, out: Path, every: float, *, largest: int = 0) -> tuple[Any, Any, Event]:
    """A process at work in the folder, how many images it told as done, and whether it has begun."""
    told, begun = CONTEXT.Value("i", 0), CONTEXT.Event()

    def work() -> None:
        kept.EVERY = every
        done: dict[str, int] = {}

        def tell(task: str, images: int, of: int, note: str = "") -> None:
            begun.set()
            done[task] = images if kind == "evaluate" else 0
            told.value = sum(done.values())

        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try:
            KINDS[kind](out, net, tell)
        except poise.InputError as error:
            print(f"  told: {str(error).replace(str(out), 'RUN')}", flush=True)
            os._exit(2)

    process = CONTEXT.Process(target=work)
    process.start()
    return process, told, begun


def written(out: Path) -> int:
    """Images that there are records of in an evaluation's folder: of attacks that ended, all."""
    ended = 96 * len([*out.glob("*/records.parquet")])
    return ended + sum(int(file.stem.rpartition("-")[2]) for file in out.glob("*/part-*"))


def content(out: Path) -> dict[str, bytes]:
    names = ("records.parquet", "images.safetensors")
    return {str(f.relative_to(out)): f.read_bytes() for name in names for f in out.rglob(name)}


def end(kind: str, out: Path, every: float) -> float:
    process, *_ = begin(kind, out, every)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--every", type=float, default=0.2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, top = np.random.default_rng(0), Path(tempfile.mkdtemp())
    for kind in KINDS:
        took = end(kind, top / kind, given.every)
        whole, same, lost = content(top / kind), 0, []
        for moment in range(given.moments):
            out = top / f"{kind}-{moment}"
            process, told, _ = begin(kind, out, given.every)
            time.sleep(rng.uniform(0, took))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            lost.append(max(0, told.value - written(out)))
            end(kind, out, given.every)
            same += content(out) == whole
        said = f", images lost {sorted(lost)}" if kind == "evaluate" else ""
        print(
            f"{kind}: {took:.1f} s whole, {len(whole)} files; {same} of {given.moments} equal{said}",
            flush=True,
        )
        for name, number, largest in (("SIGTERM", signal.SIGTERM, 0), ("a full disk", 0, 6000)):
            out = top / f"{kind}-{name.replace(' ', '-')}"
            process, _, begun = begin(kind, out, given.every, largest=largest)
            begun.wait(60)
            if number:
                second, *_ = begin(kind, out, given.every)
                second.join()
                os.kill(process.pid, number)
            process.join()
            end(kind, out, given.every)
            print(f"  {name}: exit {process.exitcode}, then equal: {content(out) == whole}", flush=True)


if __name__ == "__main__":
    main()

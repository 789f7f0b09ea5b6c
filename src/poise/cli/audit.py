"""`poise audit`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from poise.checks import InputError, check_number
from poise.cli.parsing import check_asked
from poise.naming import seconds
from poise.preparation import AS_IT_IS, Preparation
from poise.progress import bars

EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def audit(
    models: Positional[tuple[str, ...]],
    *,
    data: str,
    out: Path = Path("audit"),
    threshold: float | None = None,
    eps: tuple[float, ...] = EPS,
    size: Literal["quick", "standard", "thorough"] = "quick",
    time_limit: str | None = None,
    certify: Literal["ibp", "crown"] | None = None,
    weights: str | None = None,
    code: str | None = None,
    class_map: tuple[str, ...] = (),
    images: int | None = None,
    held_out: int | None = None,
    split: Literal["train", "test", "val"] = "test",
    batch_size: int = 128,
    devices: int | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    seed: int = 0,
    root: Path = Path("data"),
    read: Preparation = AS_IT_IS,
) -> None:
    """How many trusted answers stay trusted in the worst case; the same command again resumes.

    Several models are compared too, on grounds that a change of their confidence's scale cannot win.

    Args:
        models: Models: run folders, names or FILE.py:FUNCTION.
        data: Data set, see `poise list`.
        out: Folder for the records and the results.
        threshold: Confidence from which on an answer is trusted; others are referred to a person.
            By default 0.5, of two classes 0.75.
        eps: Budgets: by how much every pixel may change, in units of [0, 1].
        size: How much is done: images, gradients and queries; docs/audit.md has the table.
        time_limit: Take as many images and steps as fit into 90s, 30m or 2h, and say which.
        certify: Also prove below what no change can bring the confidence, for nets of layers that can be
            read; says something of nets trained for it (--defense ibp).
        weights: File of weights for one model given by name, or "pretrained".
        code: Model of the run folder once more, where it is FILE.py:FUNCTION or a download.
        class_map: What the data's classes are called in the model, DATA=MODEL ....
        images: Attack so many, the same share of every class; as many as the size has by default.
        held_out: So many images to fit a temperature on, a third and at most 500 by default; they are
            not attacked.
        split: Part of the data set.
        batch_size: Images a batch; fewer on the CPU where a batch would take more than 1 GiB.
        devices: Processes that share out the batches, one a GPU; all GPUs in sight by default, or what
            torchrun says.
        accelerator: auto takes GPUs where there are some.
        threads: Threads of arithmetic; by default what suits the model and batch, or OMP_NUM_THREADS.
        seed: Of the attacks' draws and of the choice of images.
        root: Folder of downloaded data sets.
        read: How images are brought to one shape, and which are left out; by default as the first model's
            training images were.
    """
    if not models:
        raise InputError("name at least one model: poise audit MODEL --data D")
    counts = {"images": images, "held_out": held_out, "batch_size": batch_size, "threads": threads}
    check_asked(out, seed=seed, devices=devices, **counts)
    if threshold is not None:
        check_number("threshold", threshold, 0, 1, hint="it is a confidence")
    limit = None if time_limit is None else seconds(time_limit)
    from poise import data as sets
    from poise.auditing.auditor import audit
    from poise.auditing.fitting import preparation_for
    from poise.devices import sharing
    from poise.labels import pairs
    from poise.resources import using

    matched, read = pairs(class_map), read.over(preparation_for(models[0], weights))
    source = sets.load(data, split=split, seed=seed, batch_size=batch_size, root=root, preparation=read)
    fabric = sharing(devices=devices, accelerator=accelerator)
    with using(threads), bars() as progress:
        found = audit(
            models,
            source,
            threshold=threshold,
            eps=eps,
            size=size,
            out=out,
            images=images,
            held_out=held_out,
            time_limit=limit,
            certificate=certify,
            seed=seed,
            weights=weights,
            code=code,
            class_map=matched,
            fabric=fabric,
            command=shlex.join(["poise", *sys.argv[1:]]),
            progress=progress,
            on_choice=lambda text: print(text, flush=True),
        )
    if not fabric.is_global_zero:
        return
    print(found.verdict)
    print(f"page: {out / 'audit.html'}")
    print(f"numbers: {out / 'audit.json'}")

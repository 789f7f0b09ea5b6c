"""`poise compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from poise.checks import InputError, check_number
from poise.cli.parsing import check_asked
from poise.cli.show import show_table
from poise.preparation import AS_IT_IS, Preparation
from poise.progress import bars


def compare(
    runs: Positional[tuple[Path, ...]],
    *,
    data: str,
    out: Path,
    eps: float = 0.03,
    steps: int = 20,
    confidence: float = 0.9,
    class_map: tuple[str, ...] = (),
    images: int | None = None,
    held_out: int | None = None,
    batch_size: int = 128,
    devices: int | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    code: tuple[str, ...] = (),
    split: Literal["train", "test", "val"] = "test",
    seed: int = 0,
    root: Path = Path("data"),
    read: Preparation = AS_IT_IS,
) -> None:
    """Compare trained models so that scaling the logits cannot win; the same command resumes.

    Beside raw numbers stand R, the share of right answers that PGD does not change, the bound
    1/2 + R/2 of a continuous map, and the confidence under auto once each model is scaled to its least
    held-out NLL, and once to the same clean confidence.

    Args:
        runs: Run folders of trainings.
        data: Data set, see `poise list`.
        out: Folder for the results; the table goes there too.
        eps: Budget in pixels of [0, 1].
        steps: Gradient steps.
        confidence: Clean confidence to compare at.
        class_map: What the data's classes are called in the model, DATA=MODEL ..., by its names or its
            numbers from 0; classes of equal names are matched by themselves.
        images: Compare on so many; all by default.
        held_out: So many images of the split to fit the scales on, a third and at most 500 by default;
            they are not attacked.
        batch_size: Images a batch.
        devices: So many GPUs, each with a copy of the model; all in sight by default.
        accelerator: auto takes GPUs where there are some.
        code: Models of the runs once more, where they are FILE.py:FUNCTION or a download: that is only
            run or fetched if it is named here.
        split: Part of the data set.
        seed: Of the attacks' draws and of the choice of images.
        root: Folder of downloaded data sets.
        read: How images are brought to one shape, and which are left out; by default as the first run's
            training images were.
    """
    from poise import data as sets
    from poise import store
    from poise.auditing import comparison
    from poise.auditing.audit import set_aside
    from poise.auditing.fitting import preparation_for
    from poise.labels import pairs
    from poise.training.outcome import finished

    if not runs:
        raise InputError("name at least one run folder: poise compare RUN...")
    check_asked(out, seed=seed, images=images, held_out=held_out, batch_size=batch_size, steps=steps)
    check_number("eps", eps, 0, 1, hint="in pixels of [0, 1], e.g. 8/255")
    check_number("confidence", confidence, 0, 1)
    for run in runs:
        finished(run)
    matched, read = pairs(class_map), read.over(preparation_for(str(runs[0])))
    source = sets.load(data, split=split, seed=seed, batch_size=batch_size, root=root, preparation=read)
    held, source = set_aside(source, held_out, seed=seed)
    source = source.subset(images, seed=seed)
    with bars() as progress:
        frame = comparison.compare(
            runs,
            source,
            held,
            out,
            code=code,
            eps=eps,
            steps=steps,
            mean=confidence,
            seed=seed,
            class_map=matched,
            devices=devices,
            accelerator=accelerator,
            progress=progress,
        )
    with store.writing(out):
        store.write_text(out / "comparison.md", comparison.markdown(frame))
        store.write_frame(out / "comparison.parquet", frame)
    show_table(zip(comparison.HEADING, *comparison.cells(frame), strict=True))
    print(f"table: {out / 'comparison.md'}")

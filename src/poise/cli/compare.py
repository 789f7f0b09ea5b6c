"""`poise compare`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from poise.checks import InputError, check_number
from poise.cli.show import show_table
from poise.cli.sources import Flat, Source
from poise.progress import bars


def compare(
    runs: Positional[tuple[Path, ...]],
    *,
    source: Flat[Source],
    out: Path,
    eps: float = 0.03,
    steps: int = 20,
    confidence: float = 0.9,
    code: tuple[str, ...] = (),
) -> None:
    """Compare trained models so that scaling the logits cannot win; the same command resumes.

    Beside raw numbers stand R, the share of right answers that PGD does not change, the bound
    1/2 + R/2 of a continuous map, and the confidence under auto once each model is scaled to its least
    held-out NLL, and once to the same clean confidence.

    Args:
        runs: Run folders of trainings.
        source: What they are compared on.
        out: Folder for the results; the table goes there too.
        eps: Budget in pixels of [0, 1].
        steps: Gradient steps.
        confidence: Clean confidence to compare at.
        code: Models of the runs once more, where they are FILE.py:FUNCTION or a download: that is only
            run or fetched if it is named here.
    """
    from poise import store
    from poise.auditing import comparison
    from poise.labels import pairs
    from poise.report.tables import Table
    from poise.resources import using
    from poise.training.outcome import read_finished

    if not runs:
        raise InputError("name at least one run folder: poise compare RUN...")
    source.check(out, steps=steps)
    check_number("eps", eps, 0, 1, hint="in pixels of [0, 1], e.g. 8/255")
    check_number("confidence", confidence, 0, 1)
    for run in runs:
        read_finished(run)
    matched = pairs(source.class_map)
    held, images = source.set_aside(source.load(str(runs[0])))
    images = source.draw(images)
    with using(source.threads), bars() as progress:
        frame = comparison.compare(
            runs,
            images,
            held,
            out,
            code=code,
            eps=eps,
            steps=steps,
            mean=confidence,
            seed=source.seed,
            class_map=matched,
            devices=source.devices,
            accelerator=source.accelerator,
            progress=progress,
        )
    table = comparison.table(frame)
    with store.writing(out):
        store.write_text(out / "comparison.md", table.markdown())
        store.write_frame(out / "comparison.parquet", frame)
    show_table(Table.of(zip(table.heading, *table.lines, strict=True)))
    print(f"table: {out / 'comparison.md'}")

"""The command line: each command is a function, its flags the function's arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from poise.checks import InputError, check_count
from poise.naming import known_name
from poise.progress import bars


def demo(*, out: Path = Path("demo")) -> None:
    """Train, attack and report on embedded digits: the whole story in about a minute.

    Args:
        out: Folder for the runs and the report.
    """
    import torch

    from poise.recipes.demo import demo

    torch.set_num_threads(1)  # two threads on nets this small only wait for each other
    with bars() as progress:
        audits = demo(out, progress=progress)
    _show(audits, out)


def train(
    *,
    data: str,
    out: Path,
    model: str = "lenet",
    defense: str = "vanilla",
    epochs: int = 5,
    seed: int = 0,
    eps: float | None = None,
    step: float | None = None,
    steps: int | None = None,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    images: int | None = None,
    root: Path = Path("data"),
) -> None:
    """Train a model with a defense; the same command again resumes.

    Args:
        data: Data set, see `poise list`.
        out: Run folder.
        model: Model, see `poise list`.
        defense: Defense, see `poise list`.
        epochs: Passes over the data.
        seed: Of the first weights, the order of the images and the attacks' draws.
        eps: Budget of the attack trained on, in pixels of [0, 1]; the defense's own by default.
        step: Its first step's size.
        steps: Its gradient steps.
        lr: Learning rate at the start, it falls along a cosine.
        weight_decay: Weight decay.
        batch_size: Images a batch.
        images: Train on so many, the same share of every class; all by default.
        root: Folder of downloaded data sets.
    """
    from poise import data as sets
    from poise import defenses, training

    chosen = defenses.build(defense, eps=eps, step=step, steps=steps)
    job = training.TrainJob(
        data=data,
        model=model,
        defense=defense,
        seed=seed,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=batch_size,
    )
    source = sets.load(data, split="train", images=images, seed=seed, root=root)
    with bars() as progress:
        training.train(job, source, chosen, out, progress=progress)
    print(f"trained: {out}")


def evaluate(
    *,
    model: str,
    data: str,
    out: Path,
    attacks: tuple[str, ...] = ("pgd", "adaptive", "confsmooth", "auto"),
    eps: float = 0.03,
    step: float | None = None,
    steps: int | None = None,
    keep: Literal["last", "best"] | None = None,
    norm: str | None = None,
    weights: Path | None = None,
    images: int | None = None,
    split: Literal["train", "test"] = "test",
    recalibrate: Literal["temperature", "platt", "vector", "isotonic", "spline"] | None = None,
    held_out: int = 500,
    fast: Literal["float32", "bf16"] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    threshold: float = 0.5,
    root: Path = Path("data"),
) -> None:
    """Attack a model and report what happened to its confidence; the same command again resumes.

    Args:
        model: Run folder of a training, or a model's name with --weights.
        data: Data set, see `poise list`.
        out: Run folder; the report goes there too.
        attacks: Attacks, see `poise list`.
        eps: Budget in pixels of [0, 1].
        step: First step's size, in pixels of [0, 1]; 5/255 by default.
        steps: Gradient steps; 20 by default.
        keep: Return the last point or the best; each attack's own choice by default.
        norm: Norm of the budget: linf, l2 or l1.
        weights: File of weights for a model given by name.
        images: Attack so many, the same share of every class; all by default.
        split: Part of the data set.
        recalibrate: Fit this map of the logits first, on held-out images, and attack the result.
        held_out: So many images of the split to fit it on; they are not attacked.
        fast: Attack a prepared copy (BatchNorm folded, convolutions packed; with bf16 the first steps in
            low precision); every label is checked on the model itself.
        batch_size: Images a batch.
        seed: Of the attacks' draws and of the choice of images.
        threshold: Confidence under which an answer is referred to a person.
        root: Folder of downloaded data sets.
    """
    from poise import attacks as known
    from poise import data as sets
    from poise.recipes.audit import audit

    options = {"eps": eps, "step": step, "steps": steps, "keep": keep, "norm": norm}
    names = [known_name([*known.ATTACKS, *known.READINGS], name, "attack") for name in attacks]
    chosen: dict[str, known.Attack] = {name: known.build(name, **options) for name in names}
    if fast is not None:
        from poise.fast import accelerated

        chosen = {name: accelerated(attack, precision=fast) for name, attack in chosen.items()}
    source, held = sets.load(data, split=split, seed=seed, batch_size=batch_size, root=root), None
    if recalibrate is not None:
        check_count("held_out", held_out, 1, len(source) - 1)
        held, source = source.divide(held_out, seed=seed)
    source = source.subset(images, seed=seed)
    with bars() as progress:
        run = audit(
            model,
            source,
            chosen,
            out,
            weights=weights,
            recalibrate=recalibrate,
            held_out=held,
            seed=seed,
            progress=progress,
        )
    _show([run], out, threshold=threshold)


def report(
    runs: Positional[tuple[Path, ...]], *, out: Path = Path("report"), threshold: float = 0.5
) -> None:
    """Write one self-contained HTML page, with Markdown and LaTeX tables, of several audits.

    Args:
        runs: Run folders of `poise evaluate`.
        out: Folder to write into.
        threshold: Confidence under which an answer is referred to a person.
    """
    if not runs:
        raise InputError("name at least one run folder: poise report RUN...")
    _show(runs, out, threshold=threshold)


def list_() -> None:
    """Print the attacks, defenses, models, data sets and metrics, each with its source."""
    from poise.recipes.catalogue import print_catalogue

    print_catalogue()


def download(data: Positional[str], *, root: Path = Path("data")) -> None:
    """Fetch a data set.

    Args:
        data: Data set, see `poise list`.
        root: Folder to put it in.
    """
    from poise import data as sets

    found = sets.load(data, split="train", root=root, download=True)
    print(f"{data}: {len(found)} training images under {root}")


def _show(runs: Sequence[Path], out: Path, *, threshold: float = 0.5) -> None:
    """Write the report and print its table."""
    from rich.console import Console
    from rich.table import Table

    from poise.report import html, read, summary, tables

    page = html.report(runs, out, threshold=threshold)
    frame = summary([read(run) for run in runs], threshold=threshold)
    caption = f"referred: right answers with a confidence under {threshold:g}"
    table = Table(*tables.HEADING, box=None, pad_edge=False, caption=caption, caption_justify="left")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "left" if place < 2 else "right", place > 0
    for line in tables.cells(frame):
        table.add_row(*line, style="bold" if line[0] else None)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for warning in html.warnings(runs):
        console.print(warning, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {page}", soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "evaluate": evaluate,
    "train": train,
    "report": report,
    "list": list_,
    "download": download,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what a person can mend is one line on stderr and exit status 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="poise",
            description="A classifier's confidence, measured under attack and trained to hold.",
            args=argv,
        )
    except InputError as error:
        print(f"poise: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("poise: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None

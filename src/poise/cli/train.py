"""`poise train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poise.checks import check_count
from poise.cli.parsing import check_asked
from poise.cli.sources import ALL, Files, Flat
from poise.naming import check_taken, named_options
from poise.progress import bars
from poise.train_job import TrainJob

if TYPE_CHECKING:
    from poise.defenses import Defense


def train(
    *,
    job: Flat[TrainJob],
    out: Path,
    eps: float | None = None,
    step: float | None = None,
    steps: int | None = None,
    option: tuple[str, ...] = (),
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"] = "auto",
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    files: Flat[Files] = ALL,
) -> None:
    """Train a model with a defense; the same command again resumes, also after a stop within an epoch.

    Args:
        job: All that the model depends on.
        out: Run folder.
        eps: Budget of the attack trained on, in pixels of [0, 1]; the defense's own by default.
        step: Its first step's size.
        steps: Its gradient steps.
        option: Other options of the defense, NAME=VALUE, such as beta=3 for trades.
        devices: Processes a machine, one a GPU; what torchrun says, else 1.
        nodes: Machines; what torchrun says, else 1.
        strategy: Lightning's name of it: auto or ddp.
        accelerator: auto, cpu or cuda.
        threads: Threads of arithmetic; by default what suits the model and batch, or OMP_NUM_THREADS.
        tensorboard: Write TensorBoard's files into the run folder.
        files: What it is trained on.
    """
    check_asked(out, images=files.images, devices=devices, nodes=nodes, threads=threads)
    from poise import data as sets
    from poise import training
    from poise.resources import using

    chosen = _defense(job.defense, option, eps=eps, step=step, steps=steps)
    source = sets.load(
        job.data,
        split="train",
        images=files.images,
        seed=job.seed,
        root=files.root,
        preparation=files.read,
    )
    fabric = training.fabric_for(
        job, devices=devices, nodes=nodes, strategy=strategy, accelerator=accelerator
    )
    with using(threads), bars() as progress:
        training.train(job, source, chosen, out, fabric=fabric, progress=progress, tensorboard=tensorboard)
    if fabric.is_global_zero:
        print(f"trained: {out} ({_last(out, job)})")


def _last(out: Path, job: TrainJob) -> str:
    """The numbers of the epoch whose weights were left."""
    import polars as pl

    from poise import store, training

    rows = pl.read_parquet(out / "metrics.parquet").to_dicts()
    epoch = store.read_job(out).get("selected_epoch", len(rows))
    return training.note(epoch - 1, job.epochs, rows[:epoch])


def _defense(name: str, texts: tuple[str, ...], **flags: float | None) -> Defense:
    """The defense of that name with the options given.

    Raises:
        InputError: an option that it does not take, or no steps: its name would promise an attack.
    """
    from poise import defenses

    factory = defenses.factory(name)
    given = {flag: value for flag, value in flags.items() if value is not None}
    check_taken(factory, f"defense {name!r}", given, spelled="--")
    options: dict[str, Any] = given | named_options(factory, texts)
    if "steps" in options:
        check_count("steps", options["steps"], 1)
    return factory(**options)

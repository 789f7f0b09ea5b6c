"""The loop of eq. 8, on Lightning Fabric, resumable at every step."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from poise import store
from poise.checks import NotFiniteError
from poise.data import ImageSet
from poise.defenses import Defense
from poise.progress import Progress, silent
from poise.resources import suit_threads, using
from poise.train_job import TrainJob
from poise.training.batches import generator
from poise.training.devices import agree, check_fabric, fabric_for, reduce, shares, sum_gradients
from poise.training.keeper import Keeper, board
from poise.training.outcome import load
from poise.training.run import Run, begin, describe
from poise.training.schedule import in_force, learning_rate
from poise.training.stopping import DIVERGED, GOES_ON, Request, requests
from poise.training.weights import average

_SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "pgd_accuracy": "under PGD {:.3f}",
    "confidence": "confidence under attack {:.3f}",
    "images_per_second": "{:.0f} images/s",
}


def train(
    job: TrainJob,
    data: ImageSet,
    defense: Defense,
    out: str | Path,
    *,
    model: nn.Module | None = None,
    fabric: Fabric | None = None,
    progress: Progress = silent,
    tensorboard: bool = False,
) -> nn.Module:
    """Train the job's model on the data, and leave it in the run folder `out`.

    The same call again goes on after the last whole epoch, or the step in which SIGTERM or Ctrl-C
    came, with the same bits as a run that was never stopped (on the CPU); a finished model is given
    back. A damaged checkpoint is warned of, and the one before it used; so is a model that came to
    answer one class for everything, and noted in job.json.

    Args:
        job: what to train, and how.
        data: the training images; a share of them may be set aside (`job.validation`).
        defense: gives the loss.
        out: the run folder; several processes must all see it.
        model: a network to train a copy of, instead of the job's by its name; `poise.load` needs it again.
        fabric: the devices that share out every batch, see `fabric_for`; one by default. Every epoch's
            numbers go to the loggers that it was made with, Lightning's for CSV, TensorBoard, W&B, ...
        progress: told of every step.
        tensorboard: also write every epoch's row for TensorBoard.

    Raises:
        InputError: `out` holds another run, cannot be written or has no room; or training diverged.
        Stopped: on SIGTERM, after the checkpoint was written.
    """
    job = job if model is None else replace(job, model=type(model).__name__)
    fabric = fabric or fabric_for(job)
    check_fabric(fabric, job)
    fabric.launch()
    keeper = Keeper(Path(out), describe(job, data, defense, model), fabric)
    if keeper.finds_model():
        return fabric.to_device(load(out, code=job.model, model=model))
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        board(keeper.folder, wanted=tensorboard) as show,
        requests() as asked,
    ):
        run = begin(job, data.batched(job.batch_size), defense, fabric, model)
        with using(lambda: store.threads_of(keeper.folder) or _threads(run)):
            keeper.open(run)
            while keeper.goes_on(run):
                if _epoch(run, asked, progress if fabric.is_global_zero else silent):
                    keeper.close_epoch(run, show)
                else:
                    keeper.save(run)
                if agree(fabric, asked.code) and run.step < run.steps:
                    asked.leave(run.step, run.steps, keeper.folder)
            return keeper.finish(run)


def _threads(run: Run) -> int:
    """Threads that suit a step on the CPU: by the part of a batch that goes through the model at once."""
    chosen = run.train[: run.job.batch_size]
    part = next(shares(len(chosen), run.fabric, run.job.accumulate))
    x, _ = run.batch(chosen, part, 0)
    return suit_threads(run.model, x[:2], images=len(x))


def _epoch(run: Run, asked: Request, progress: Progress) -> bool:
    """Train for the rest of an epoch, or until a request to stop; whether there is nothing left of it.

    There is nothing left either where training diverged.
    """
    (epoch, done), began = divmod(run.step, run.per_epoch), _clock(run.fabric.device)
    words = note(epoch, run.job.epochs, run.rows)
    for chosen in torch.split(run.order(epoch), run.job.batch_size)[done:]:
        loss, code = _step(run, chosen)
        run.losses.append(loss)
        run.step += 1
        progress(f"train {run.job.defense}", run.step, run.steps, words)
        code = agree(run.fabric, max(code, asked.code), run.step % run.per_epoch)
        if code != GOES_ON:
            break
    run.losses = list(reduce(run.fabric, torch.stack(run.losses)))  # each process has its images' part
    run.seconds += _clock(run.fabric.device) - began
    return code == DIVERGED or run.step % run.per_epoch == 0


def _clock(device: torch.device) -> float:
    """Seconds, read when the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _step(run: Run, chosen: Tensor) -> tuple[Tensor, int]:
    """One step of eq. 8 on a batch; this process's part of the mean loss, and whether to go on."""
    job, fabric, code = run.job, run.fabric, GOES_ON
    torch.manual_seed(job.seed * 1_000_003 + run.step + (fabric.global_rank << 40))  # e.g. for Dropout
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(job, run.step, run.steps)
    defense = in_force(job, run.defense, run.step, run.steps)
    run.optimizer.zero_grad()
    total, share = torch.zeros((), device=fabric.device), 0.0
    for part in shares(len(chosen), fabric, job.accumulate):
        x, y = run.batch(chosen, part, run.step)
        try:
            loss = defense(run.model, x, y, generator(job, run.step)) * (len(y) / len(chosen))
        except NotFiniteError:
            if run.step == 0:  # nothing has been trained yet that could have diverged
                raise
            total, code = total + float("nan"), DIVERGED
            break
        fabric.backward(loss)
        total, share = total + loss.detach(), share + len(y) / len(chosen)
    if code == GOES_ON or fabric.world_size > 1:  # the others wait for this one's gradients
        sum_gradients(fabric, run.net, share)
        run.optimizer.step()
        if run.shadow is not None:
            average(run.shadow, run.net, job.ema, run.step)
    return total, code


def note(epoch: int, epochs: int, rows: list[dict[str, Any]]) -> str:
    """A few words for the progress bar: the epoch, and how the one before it ended.

    >>> note(1, 3, [{"loss": 0.5, "accuracy": 0.75, "images_per_second": 99.6}])
    'epoch 2/3, loss 0.500, accuracy 0.750, 100 images/s'
    """
    last = rows[-1] if rows else {}
    told = [form.format(last[name]) for name, form in _SHOWN.items() if last.get(name) is not None]
    return ", ".join([f"epoch {epoch + 1}/{epochs}", *told])

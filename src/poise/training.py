"""Training: one loop on Lightning Fabric, resumable after every epoch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning_fabric import Fabric
from torch import nn

from poise import models, store
from poise.checks import InputError, check_count, check_number
from poise.data import ImageSet
from poise.defenses import Defense
from poise.modes import evaluating
from poise.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that a trained model depends on; defaults are the paper's (section 4.1).

    SGD with Nesterov momentum, the learning rate falling to 0 along a cosine over all steps.
    """

    data: str
    model: str
    defense: str  # the name it goes by
    seed: int = 0
    epochs: int = 5
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_count("seed", self.seed)
        check_count("epochs", self.epochs, 1)
        check_count("batch_size", self.batch_size, 1)
        check_number("lr", self.lr, 1e-12)
        check_number("momentum", self.momentum, 1e-12, 1)
        check_number("weight_decay", self.weight_decay, 0)


def train(
    job: TrainJob,
    data: ImageSet,
    defense: Defense,
    out: str | Path,
    *,
    fabric: Fabric | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train the job's model on the data, and leave it in the run folder `out`.

    The same call again resumes after the last whole epoch, with the same bits as a run that was
    never stopped (on the CPU), or gives back the finished model. The last epoch's weights count.
    A model that came to answer one class for everything is warned of, and so noted in job.json.

    Raises:
        InputError: `out` holds another run, or the training diverged.
    """
    folder = store.open_run(Path(out), describe(job, data, defense))
    if (folder / "model.safetensors").exists():
        return load(folder)
    fabric = fabric or Fabric(accelerator="auto", devices=1)
    fabric.launch()
    data = data.batched(job.batch_size)
    checkpoint, history = folder / "checkpoint.safetensors", folder / "metrics.parquet"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(job.seed)
        net = models.load(job.model, classes=len(data.classes), shape=data.shape).train()
        sgd = torch.optim.SGD(
            net.parameters(), job.lr, job.momentum, weight_decay=job.weight_decay, nesterov=True
        )
        model, optimizer = fabric.setup(net, sgd)
        done = _restore(checkpoint, net, optimizer) if checkpoint.exists() else 0
        rows = pl.read_parquet(history).head(done).to_dicts() if done else []
        for epoch in range(done, job.epochs):
            torch.manual_seed(job.seed * 1_000_003 + epoch)  # for models that draw, such as Dropout
            began = time.perf_counter()
            note = f"epoch {epoch + 1}/{job.epochs}" + (f", loss {rows[-1]['loss']:.3f}" if rows else "")
            tell = partial(_tell, progress, f"train {job.defense}", note)
            loss = _epoch(job, data, defense, fabric, model, optimizer, epoch, tell)
            if not (math.isfinite(loss) and all(bool(p.isfinite().all()) for p in net.parameters())):
                raise InputError(_diverged(job, epoch, folder))
            rows.append({"epoch": epoch + 1, "loss": loss, "seconds": time.perf_counter() - began})
            store.write_frame(history, pl.DataFrame(rows))
            _save(checkpoint, net, optimizer, epoch + 1)
    store.note(folder, seconds=sum(row["seconds"] for row in rows), collapsed=_collapsed(net, data))
    store.write_tensors(folder / "model.safetensors", net.state_dict())
    checkpoint.unlink(missing_ok=True)
    return net.eval()


def _epoch(
    job: TrainJob,
    data: ImageSet,
    defense: Defense,
    fabric: Fabric,
    model: nn.Module,
    optimizer: Any,
    epoch: int,
    tell: Callable[[int, int], object],
) -> float:
    """Eq. 8 over the data once; the mean loss. What is random depends on the seed and the step alone."""
    per_epoch = -(-len(data) // job.batch_size)
    steps, losses = job.epochs * per_epoch, []
    for step, (x, y) in enumerate(data.shuffled(job.seed, epoch), start=epoch * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = job.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        generator = torch.Generator().manual_seed(job.seed * 1_000_000_007 + step)
        x, y = fabric.to_device((x, y))
        try:
            loss = defense(model, x, y, generator)
        except InputError:
            if step == 0:  # nothing has been trained yet that could have diverged
                raise
            return math.nan
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
        tell(step + 1, steps)
    return float(torch.stack(losses).mean())


def _tell(progress: Progress, task: str, note: str, done: int, of: int) -> None:
    progress(task, done, of, note)


def _collapsed(net: nn.Module, data: ImageSet) -> bool:
    """Whether the net answers one class for everything, which looks perfectly robust; warns if so."""
    device = next(net.parameters()).device
    with evaluating(net), torch.no_grad():
        answers = {int(k) for x, _ in data for k in net(x.to(device)).argmax(dim=1).unique(sorted=False)}
    if collapsed := len(answers) == 1 < len(data.classes):
        warnings.warn(
            "the trained model gives every image the same class: it has collapsed, and its robustness "
            "means nothing; try a lower learning rate or a smaller eps",
            stacklevel=3,
        )
    return collapsed


def describe(job: TrainJob, data: ImageSet, defense: Defense) -> dict[str, Any]:
    """The configuration that names the run: the job, and what exactly the names stood for."""
    return {
        "kind": "train",
        **asdict(job),
        "defense_value": repr(defense),
        "images": len(data),
        "fingerprint": data.fingerprint(),
        "classes": list(data.classes),
        "shape": list(data.shape),
    }


def load(run: str | Path) -> nn.Module:
    """The trained model of a run folder, in evaluation mode, on the CPU.

    Raises:
        InputError: no such run, or one that has not finished.
    """
    folder = Path(run)
    job = store.read_job(folder)["job"]
    if job.get("kind") != "train":
        raise InputError(f"{str(folder)!r} is no training run: its kind is {job.get('kind')!r}")
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise InputError(
            f"the training in {str(folder)!r} has not finished: the same `poise train` command resumes it"
        )
    channels, height, width = job["shape"]
    return models.load(
        job["model"],
        classes=len(job["classes"]),
        shape=(channels, height, width),
        weights=weights,
    )


def _diverged(job: TrainJob, epoch: int, folder: Path) -> str:
    return (
        f"the training diverged in epoch {epoch + 1}, weights or loss are no longer finite: try a "
        f"lower learning rate than {job.lr:g}, in another folder than {str(folder)!r}"
    )


def _save(file: Path, net: nn.Module, optimizer: Any, epoch: int) -> None:
    tensors = {f"model.{name}": value for name, value in net.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = state["momentum_buffer"]
    store.write_tensors(file, tensors, {"epoch": str(epoch)})


def _restore(file: Path, net: nn.Module, optimizer: Any) -> int:
    tensors, facts = store.read_tensors(file)
    net.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    state = optimizer.state_dict()
    state["state"] = {
        int(name[9:]): {"momentum_buffer": value}
        for name, value in tensors.items()
        if name.startswith("momentum.")
    }
    optimizer.load_state_dict(state)
    return int(facts["epoch"])

"""What a run leaves in its folder: one process opens, saves, closes and finishes it for all of them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from poise import store
from poise.checks import InputError
from poise.data import ImageSet
from poise.devices import by_first
from poise.modes import ask, evaluating
from poise.recalibration import logits_of, temperature
from poise.training import checkpoint, selection
from poise.training.outcome import read_marks
from poise.training.run import Run
from poise.training.schedule import learning_rate

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Keeper:
    """The folder of a run, and the configuration that it holds.

    Each method is called by every process; the first does the work, and what it is refused all are.
    """

    folder: Path
    configuration: Mapping[str, Any]
    fabric: Fabric

    def finds_model(self) -> bool:
        """Whether the same run is there already, finished.

        Raises:
            InputError: the folder holds another run, or something else.
        """

        def look() -> bool:
            if not (self.folder / "job.json").exists():
                return False
            self._open_folder()
            return (self.folder / "model.safetensors").exists()

        return by_first(self.fabric, look)

    def open(self, run: Run) -> None:
        """Make the folder, or put its newest checkpoint into the run; note the devices.

        Not before there is a run: a model that is refused leaves no folder behind.

        Raises:
            InputError: the folder cannot be written or has no room, or no whole checkpoint is left.
        """

        def prepare() -> None:
            self._open_folder()
            checkpoint.check_room(self.folder, run)

        by_first(self.fabric, prepare)
        found = by_first(self.fabric, lambda: checkpoint.newest(self.folder))
        if found is not None:
            checkpoint.restore(run, *found)
        by_first(self.fabric, lambda: self._note_devices(run.step))

    def goes_on(self, run: Run) -> bool:
        """Whether there is a step left, and the best epoch is not longer ago than the job's patience."""

        def look() -> bool:
            patience = run.job.patience
            late = bool(patience and run.rows) and len(run.rows) - _best_epoch(run) >= patience
            return run.step < run.steps and not late

        return by_first(self.fabric, look)

    def save(self, run: Run) -> None:
        """Write all that moves in a run.

        Raises:
            InputError: the disk is full, or the folder cannot be written any more.
        """
        by_first(self.fabric, lambda: checkpoint.save(self.folder, run))

    def close_epoch(self, run: Run, show: Show) -> None:
        """Add the epoch's row, keep its weights if they are the best, write metrics and checkpoint.

        Raises:
            InputError: the loss or a weight is no longer finite, or the disk is full.
        """
        by_first(self.fabric, lambda: self._add_row(run, show))
        run.losses, run.seconds = [], 0.0
        self.save(run)

    def finish(self, run: Run) -> nn.Module:
        """The trained model in evaluation mode, left in the folder too; the checkpoints go."""
        best = self.fabric.broadcast(run.best)
        run.net.load_state_dict(best or run.candidate.state_dict())
        run.net.requires_grad_(True).eval()
        by_first(self.fabric, lambda: self._leave(run, selected=bool(best)))
        return run.net

    def _open_folder(self) -> None:
        store.open_run(self.folder, self.configuration, device=self.fabric.device)

    def _note_devices(self, step: int) -> None:
        """Note the devices in job.json; warn where the steps so far were made on others or by others."""
        device, devices = self.fabric.device, self.fabric.world_size
        if not step:
            store.note(self.folder, devices=devices, **store.circumstances(device))
        elif differ := store.join(self.folder, device=device, devices=devices):
            then, now = (", ".join(words) for words in zip(*differ, strict=True))
            warnings.warn(
                f"the run in {str(self.folder)!r} was on {then} up to step {step} and goes on with {now}: "
                "the model is that of neither; of another number of devices also BatchNorm takes note, and "
                "every loss of the batch as a whole",
                stacklevel=6,
            )

    def _add_row(self, run: Run, show: Show) -> None:
        loss = float(torch.stack(run.losses).mean())
        if not math.isfinite(loss) or not all(bool(p.isfinite().all()) for p in run.net.parameters()):
            precise = "" if run.job.precision == "32-true" else ", precision 32-true"
            raise InputError(
                f"the training diverged in epoch {len(run.rows) + 1}, weights or loss are no longer "
                f"finite: try a lower learning rate than {run.job.lr:g}, warmup{precise}, in another "
                f"folder than {str(self.folder)!r}"
            )
        row = {
            "epoch": len(run.rows) + 1,
            "loss": loss,
            "seconds": run.seconds,
            "lr": learning_rate(run.job, run.step - 1, run.steps),
            "images_per_second": len(run.train) / max(run.seconds, 1e-9),
        }
        run.rows.append(row | selection.judge(run))
        if run.job.select != "last" and _best_epoch(run) == len(run.rows):
            run.best = {name: t.detach().cpu().clone() for name, t in run.candidate.state_dict().items()}
        with store.writing(self.folder):
            frame = pl.DataFrame(run.rows, infer_schema_length=None)
            store.write_frame(self.folder / "metrics.parquet", frame)
            show(run.rows[-1])
        told = {name: value for name, value in run.rows[-1].items() if isinstance(value, float | int)}
        run.fabric.log_dict(told, step=len(run.rows))  # to the loggers of a Fabric of the caller's

    def _leave(self, run: Run, *, selected: bool) -> None:
        facts: dict[str, Any] = {"selected_epoch": _best_epoch(run)} if selected else {}
        if len(run.validation):
            facts["k_nll"] = _scale(run)
        seconds = sum(row["seconds"] for row in run.rows)
        facts |= {
            "source": run.data.told,
            "seconds": seconds,
            "collapsed": _is_collapsed(run.net, run.data),
        }
        names = {"classes": json.dumps(run.data.classes)}
        files = {
            "seen.safetensors": store.tensor_bytes({"images": _marks(run)}),
            "model.safetensors": store.tensor_bytes(run.net.state_dict(), names),
        }
        store.leave(self.folder, files, **facts)
        checkpoint.remove(self.folder)


@contextmanager
def board(folder: Path, *, wanted: bool) -> Iterator[Show]:
    """A function that shows an epoch's row in TensorBoard, or does nothing where it is not wanted.

    One file for all rows, begun with the first of them; an epoch shown before is shown anew.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if not wanted:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard=True needs the package tensorboard: pip install 'poise[tensorboard]'"
        ) from error

    open_writers: list[Any] = []

    def show(row: Mapping[str, Any]) -> None:
        if not open_writers:
            open_writers.append(SummaryWriter(str(folder / "tensorboard"), purge_step=row["epoch"]))
        (writer,) = open_writers
        for name, value in row.items():
            if name != "epoch" and isinstance(value, float | int):
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    try:
        yield show
    finally:
        for writer in open_writers:
            writer.close()


def _best_epoch(run: Run) -> int:
    """Counted from 1, as the rows do."""
    return 1 + selection.best_epoch([row["score"] for row in run.rows])


def _marks(run: Run) -> Tensor:
    """Marks of the run's images, those set aside too, and of those that its first weights have seen."""
    before = None if run.job.weights in (None, "pretrained") else read_marks(Path(str(run.job.weights)))
    marks = run.data.marks()
    return marks if before is None else torch.cat([before, marks])


def _scale(run: Run) -> float | None:
    """The factor on the logits of least validation NLL; None where there is no finite one."""
    try:
        return float(temperature(*logits_of(run.net, run.data.batches(run.validation))).k)
    except InputError:
        return None


def _is_collapsed(net: nn.Module, data: ImageSet) -> bool:
    """Whether the net answers one class for everything, which looks perfectly robust; warns if so."""
    device, answers = next(net.parameters()).device, set[int]()
    with evaluating(net), torch.no_grad():
        for x, _ in data:
            answers |= set(ask(net, x.to(device)).argmax(dim=1).tolist())
            if len(answers) > 1:  # seen enough
                break
    if collapsed := len(answers) == 1 < len(data.classes):
        warnings.warn(
            "the trained model gives every image the same class: it has collapsed, and its robustness "
            "means nothing; try a lower learning rate, a smaller eps, or eps_warmup",
            stacklevel=7,  # whoever called train
        )
    return collapsed

"""What a run says of itself: after every epoch, and while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poise.checks import InputError

_SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "pgd_accuracy": "under PGD {:.3f}",
    "confidence": "confidence under attack {:.3f}",
    "images_per_second": "{:.0f} images/s",
}


def note(epoch: int, epochs: int, rows: list[dict[str, Any]]) -> str:
    """A few words for the progress bar: the epoch, and how the one before it ended.

    >>> note(1, 3, [{"loss": 0.5, "accuracy": 0.75, "images_per_second": 99.6}])
    'epoch 2/3, loss 0.500, accuracy 0.750, 100 images/s'
    """
    last = rows[-1] if rows else {}
    told = [form.format(last[name]) for name, form in _SHOWN.items() if last.get(name) is not None]
    return ", ".join([f"epoch {epoch + 1}/{epochs}", *told])


@contextmanager
def board(folder: Path, *, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
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

"""Progress: how long jobs say how far they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from poise.naming import plain


class Progress(Protocol):
    """Called as a task goes on."""

    def __call__(self, task: str, done: int, of: int, note: str = "") -> object:
        """`done` steps `of` so many of the task of that name; a few words beside."""
        ...


def silent(task: str, done: int, of: int, note: str = "") -> None:
    """Say nothing."""


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on the terminal, one a task, with the time left; none before the first task."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),  # names are not ours
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column()
        ),  # the one that wraps if it must
    )
    tasks: dict[str, TaskID] = {}
    progress = Progress(*columns, speed_estimate_period=600)  # batches may take minutes

    def update(task: str, done: int, of: int, note: str = "") -> None:
        if not tasks:
            progress.start()  # not before: a question may be asked first, and bars draw over it
        if task not in tasks:
            tasks[task] = progress.add_task(plain(task), total=of, note=plain(note))
        progress.update(tasks[task], completed=done, total=of, note=plain(note))

    try:
        yield update
    finally:
        if tasks:
            progress.stop()

"""Signals: a run that is asked to stop finishes its step, saves, and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

GOES_ON, ASKED, DIVERGED = 0, 1, 2  # what may come of a step; the higher one counts


class Stopped(SystemExit):
    """The run was asked to stop and has saved all that it needs to go on; its text says how."""


@dataclass
class Request:
    """The signal that asked the run to stop; 0 while none has."""

    signal: int = 0

    @property
    def code(self) -> int:
        """Whether it did."""
        return ASKED if self.signal else GOES_ON

    def leave(self, step: int, steps: int, folder: Path) -> NoReturn:
        """End the run, its checkpoint being written."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(
            f"poise: asked to stop, and stopped after step {step} of {steps}: the same command goes on "
            f"from there in {str(folder)!r}"
        )


@contextmanager
def requests() -> Iterator[Request]:
    """Take note of SIGTERM and Ctrl-C; at the second one whatever was in force before is done.

    Python allows this in the main thread alone; elsewhere nothing is changed.
    """
    asked = Request()
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def take_note(number: int, frame: FrameType | None) -> Any:
        asked.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, take_note)
    try:
        yield asked
    finally:
        restore()

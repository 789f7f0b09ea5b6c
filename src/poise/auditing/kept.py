"""Records of an attack under way, kept every half a minute: a stop costs no more than that."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from poise import store
from poise.checks import InputError
from poise.job_file import damaged
from poise.records import Records

EVERY = 30.0  # seconds
NAMES = "part-*.safetensors"


class Kept:
    """The records of the first batches of an attack, in files of the attack's folder until it is whole.

    Attributes:
        parts: in the order of the images.
        seconds: that the attack took for them, in all calls.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.clock = folder, clock
        self.parts: list[Records] = []
        self.waiting: list[Records] = []
        self.seconds, self.last = 0.0, clock()
        for file in sorted(folder.glob(NAMES)):
            records, self.seconds = _read(file)
            self.parts.append(records)

    @property
    def images(self) -> int:
        """How many images there are records of."""
        return sum(map(len, [*self.parts, *self.waiting]))

    def add(self, records: Records, seconds: float) -> None:
        """Take in a batch; write what waits where the last file is old, or this batch took as long.

        Raises:
            InputError: the disk is full, or the folder cannot be written any more.
        """
        self.waiting.append(records)
        self.seconds = seconds
        if self.clock() - self.last >= EVERY:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        self.last = self.clock()
        if not self.waiting:
            return
        records = Records.join(self.waiting)
        tensors = records.tensors()
        facts = {"seconds": repr(self.seconds), "digest": store.digest(store.tensor_bytes(tensors))}
        with store.writing(self.folder):
            store.write_tensors(self.folder / f"part-{len(self.parts):06d}.safetensors", tensors, facts)
        self.parts.append(records)
        self.waiting = []

    def whole(self) -> Records:
        """All of them."""
        return Records.join([*self.parts, *self.waiting])

    def clear(self) -> None:
        """Take the files away: the attack's own records are written."""
        for file in self.folder.glob(NAMES):
            file.unlink()


def _read(file: Path) -> tuple[Records, float]:
    """The records in a file, and the seconds until then.

    Raises:
        InputError: the file does not hold what was written.
    """
    tensors, facts = store.read_tensors(file)
    if facts.get("digest") != store.digest(store.tensor_bytes(tensors)):
        damaged(file, "it does not hold what the run wrote")
    try:
        return Records(**tensors), float(facts["seconds"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{str(file)!r} is of another version: remove it") from error

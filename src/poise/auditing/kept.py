"""Records of an attack under way, kept every half a minute: a stop costs no more than that."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from poise import store
from poise.checks import InputError
from poise.job_file import refuse_damaged
from poise.records import Records

EVERY = 30.0  # seconds
NAME = re.compile(r"part-(\d{8})-(\d+)\.safetensors")


class Part(NamedTuple):
    """Records of images in a row, the seconds that the attack took for them, and its notes."""

    records: Records
    seconds: float
    notes: tuple[str, ...]


class Kept:
    """Takes in batches of one attack, and writes them into files of its folder, images in a row each.

    Several processes may do so at a time, for batches of their own; the files say which images they hold.
    """

    def __init__(
        self, folder: Path, *, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.every, self.clock = folder, every, clock
        self.waiting: list[Part] = []
        self.first, self.last = 0, clock()  # the first image that waits, the time of the last file

    @property
    def images(self) -> int:
        """How many images there are records of, here and in all files."""
        return sum(n for _, n in _spans(self.folder)) + sum(len(part.records) for part in self.waiting)

    def add(self, first: int, part: Part) -> None:
        """Take in a batch that begins with that image; write what waits where the last file is old.

        Raises:
            InputError: the disk is full, or the folder cannot be written any more.
        """
        if self.waiting and first != self.first + sum(len(other.records) for other in self.waiting):
            self.write()
        if not self.waiting:
            self.first = first
        self.waiting.append(part)
        if self.clock() - self.last >= self.every:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        self.last = self.clock()
        if not self.waiting:
            return
        found = _joined(self.waiting)
        tensors = found.records.tensors()
        facts = {
            "seconds": repr(found.seconds),
            "notes": json.dumps(found.notes),
            "digest": store.digest(store.tensor_bytes(tensors)),
        }
        with store.writing(self.folder):
            store.write_tensors(_file(self.folder, self.first, len(found.records)), tensors, facts)
        self.waiting = []


def left(folder: Path, images: int, batch_size: int) -> list[Tensor]:
    """The images that there are no records of, in batches of images in a row.

    Raises:
        InputError: a file that does not hold what was written.
    """
    there = [(0, 0), *((first, first + _read(folder, first, n)) for first, n in _spans(folder))]
    gaps = zip((end for _, end in there), [*(first for first, _ in there[1:]), images], strict=True)
    return [
        batch for end, first in gaps if end < first for batch in torch.arange(end, first).split(batch_size)
    ]


def whole(folder: Path) -> Part:
    """All that the files hold, in the order of the images."""
    return _joined([_part(_file(folder, *span)) for span in _spans(folder)])


def clear(folder: Path) -> None:
    """Take the files away: the attack's own records are written."""
    for first, n in _spans(folder):
        _file(folder, first, n).unlink()


def _spans(folder: Path) -> list[tuple[int, int]]:
    """The first image of each file, and how many there are, in the order of the images."""
    names = (NAME.fullmatch(file.name) for file in folder.glob("part-*"))
    return sorted((int(found[1]), int(found[2])) for found in names if found)


def _file(folder: Path, first: int, n: int) -> Path:
    return folder / f"part-{first:08d}-{n}.safetensors"


def _read(folder: Path, first: int, n: int) -> int:
    if len(_part(_file(folder, first, n)).records) != n:
        refuse_damaged(_file(folder, first, n), "it does not hold as many images as its name says")
    return n


def _part(file: Path) -> Part:
    """What a file holds.

    Raises:
        InputError: the file does not hold what was written.
    """
    tensors, facts = store.read_tensors(file)
    if facts.get("digest") != store.digest(store.tensor_bytes(tensors)):
        refuse_damaged(file, "it does not hold what the run wrote")
    try:
        return Part(Records(**tensors), float(facts["seconds"]), tuple(json.loads(facts["notes"])))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{str(file)!r} is of another version: remove it") from error


def _joined(parts: Sequence[Part]) -> Part:
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Part(Records.join(part.records for part in parts), sum(p.seconds for p in parts), tuple(notes))

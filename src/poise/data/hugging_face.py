"""Image data sets of the Hugging Face hub."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from poise.checks import BROKEN, InputError, require
from poise.data.arrays import ImageSet, Split, check_filled, keep
from poise.data.decoding import open_image
from poise.data.pictures import pictures, readable, sha256_of
from poise.preparation import AS_IT_IS, Preparation

NAMES = {"train": ("train",), "test": ("test",), "val": ("validation", "val", "valid")}


@dataclass(frozen=True, eq=False)
class Column:
    """The undecoded images of a data set's column, as a source."""

    rows: Any  # gives {column: {"bytes": ..., "path": ...}} for a row's number
    column: str
    title: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """The row."""
        return f"row {i} of {self.title}"

    def image(self, i: int) -> Image.Image:
        """The row's image, its header read."""
        return open_image(io.BytesIO(self._bytes(i)), self.name(i))

    def digest(self, i: int) -> bytes:
        """A SHA-256 of the encoded image."""
        return sha256_of(self._bytes(i))

    def alike(self) -> bool:
        """Never: each image has a size of its own."""
        return False

    def _bytes(self, i: int) -> bytes:
        image = self.rows[i][self.column]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def hugging_face(
    name: str,
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """A data set of the Hugging Face hub with a column of images and one of class labels.

    NAME#CONFIG takes one of its configurations. Without `download`, only what the hub's cache
    holds is read. `root` plays no part.

    Raises:
        InputError: the package `datasets` is missing (the extra `hf`), the data set cannot be had,
            or has no such columns.
    """
    datasets = require("datasets", extra="hf", what=f"hf:{name}")
    path, _, config = name.partition("#")
    rows = _load(datasets, path, config or None, split, download)
    image, label = _columns(datasets, rows, name)
    source = Column(rows.cast_column(image, datasets.Image(decode=False)), image, f"hf:{name}")
    classes = tuple(rows.features[label].names)
    given = torch.tensor(rows[label][:], dtype=torch.int64)
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= len(classes)):
        raise InputError(
            f"the labels of hf:{name} must lie in [0, {len(classes) - 1}], got "
            f"[{int(given.min())}, {int(given.max())}] (-1 stands for no label: take another split)"
        )
    kept = keep(classes, preparation.drop, f"hf:{name}")
    number = torch.tensor([kept.index(c) if c in kept else -1 for c in classes])
    chosen = torch.arange(len(given))[number[given] >= 0]
    if preparation.skip_damaged:
        chosen = chosen[readable(source, chosen, preparation.bits)]
    y = number[given[chosen]]
    check_filled(y, kept, f"hf:{name}", allow_empty=preparation.allow_empty)
    return ImageSet(path.rpartition("/")[2], pictures(source, chosen, preparation), y, kept)


def _load(datasets: Any, path: str, config: str | None, split: Split, download: bool) -> Any:
    try:
        here = datasets.DownloadConfig(local_files_only=not download)
        parts = datasets.load_dataset(path, config, download_config=here)
    except (*BROKEN, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the Hugging Face data set {path!r} cannot be had ({reason}): look at its name, NAME#CONFIG, "
            f"or fetch it with `poise download hf:{path}`"
        ) from error
    for known in NAMES[split]:
        if known in parts:
            return parts[known]
    raise InputError(f"hf:{path} has the splits {', '.join(parts)} and no {split!r}")


def _columns(datasets: Any, rows: Any, name: str) -> tuple[str, str]:
    """The names of the one column of images and the one of class labels."""
    found = [
        [column for column, feature in rows.features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    ]
    if any(len(columns) != 1 for columns in found):
        raise InputError(
            f"hf:{name} must have one column of images and one of class labels, and has "
            f"{', '.join(f'{c} ({type(f).__name__})' for c, f in rows.features.items())}"
        )
    return found[0][0], found[1][0]

"""Arrays in one .npz file, in the layout of MedMNIST (Yang et al. 2023)."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.checks import InputError
from poise.data.arrays import ImageSet, Split
from poise.data.folders import SPLITS, check_filled
from poise.data.prepared import prepared
from poise.preparation import AS_IT_IS, Preparation


def npz(
    file: str,
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """Arrays SPLIT_images and SPLIT_labels of an .npz file; FILE#7 asks whether label 7 applies.

    Images are uint8 or uint16 (its high byte is taken): (n, h, w) grey, (n, h, w, 3) colour, or
    (n, d, h, w) volumes, whose slices become channels. Labels are (n,) or (n, 1) numbers from 0; of
    (n, k) labels of 0 and 1, one column is a task of two classes. An array `classes` may name them.
    Arrays that are not compressed are read from the disk as they are needed. `root` and `download`
    play no part. All 18 sets of MedMNIST are in this layout.

    Raises:
        InputError: a file without these arrays, pickled objects, or labels out of range.
    """
    path, column = _column(file)
    arrays = _open(path)
    where = repr(str(path))
    _check_keys(arrays, split, where)
    pixels = as_pixels(_mapped(path, f"{split}_images", arrays), f"{split}_images of {where}")
    labels: dict[str, NDArray[Any]] = {
        name: _array(arrays, f"{name}_labels", where) for name in SPLITS if f"{name}_labels" in arrays
    }
    names = [str(name) for name in _array(arrays, "classes", where)] if "classes" in arrays else None
    if column is not None or any(y.ndim == 2 and y.shape[1] > 1 for y in labels.values()):
        labels, names = _one_of_many(labels, column, names, where)
    y = {name: as_labels(values, f"{name}_labels of {where}") for name, values in labels.items()}
    classes = _classes(list(y.values()), names, where, allow_empty=preparation.allow_empty)
    if len(y[split]) != len(pixels):
        raise InputError(f"{where} has {len(pixels)} {split}_images and {len(y[split])} {split}_labels")
    if not len(pixels):
        raise InputError(f"{split}_images of {where} is empty")
    title = path.stem if column is None else f"{path.stem}#{column}"
    return prepared(ImageSet(title, torch.from_numpy(pixels), y[split], classes), preparation)


def as_pixels(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """The images as (n, c, h, w) of uint8.

    >>> as_pixels(np.zeros((5, 8, 9, 3), np.uint8), "it").shape
    (5, 3, 8, 9)
    """
    if images.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{where} holds {images.dtype} values, and uint8 in [0, 255] or uint16 is needed: convert "
            "it, e.g. "
            "(255 * images).round().astype('uint8')"
        )
    if images.ndim not in (3, 4):
        raise InputError(
            f"{where} has shape {images.shape}, and (n, h, w), (n, h, w, 3) or (n, d, h, w) is needed"
        )
    if images.dtype == np.uint16:
        images = (images >> 8).astype(np.uint8)
    if images.ndim == 3:
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if images.shape[3] in (1, 3) else images


def as_labels(y: NDArray[Any], where: str) -> torch.Tensor:
    """The labels as (n,) of int64."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(f"{where} must hold one whole number an image, got {y.dtype} of shape {y.shape}")
    return torch.from_numpy(y.astype(np.int64))


def _column(file: str) -> tuple[Path, int | None]:
    before, _, after = file.rpartition("#")
    if before and after.isdigit() and not Path(file).exists():
        return Path(before), int(after)
    return Path(file), None


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{str(path)!r} is no .npz file of arrays, pickles are not read: {error}"
        ) from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise InputError(f"{str(path)!r} holds one array: save images and labels together with np.savez")
    return arrays


def _check_keys(arrays: Any, split: Split, where: str) -> None:
    missing = [key for key in (f"{split}_images", f"{split}_labels") if key not in arrays]
    whole = [name for name in SPLITS if f"{name}_images" in arrays and f"{name}_labels" in arrays]
    if missing and whole:
        raise InputError(
            f"{where} has no {' and no '.join(missing)}, but the split{'s' if len(whole) > 1 else ''} "
            f"{', '.join(whole)} (--split {whole[0]})"
        )
    if missing:
        raise InputError(
            f"{where} has the arrays {', '.join(arrays.files) or 'none'}, and {split}_images and "
            f"{split}_labels are needed (the layout of MedMNIST)"
        )


def _array(arrays: Any, key: str, where: str) -> NDArray[Any]:
    try:
        return np.asarray(arrays[key])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the array {key} of {where} cannot be read ({error}): pickled objects are refused, since they "
            "can run code; save plain numbers"
        ) from error


def _mapped(path: Path, key: str, arrays: Any) -> NDArray[Any]:
    """The array, mapped from the disk if it lies there uncompressed; a write would stay in memory."""
    info, magic = arrays.zip.getinfo(f"{key}.npy"), np.lib.format.MAGIC_LEN
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))  # lengths at the end of a local header
        begin = info.header_offset + 30 + name + extra
        file.seek(begin)
        if info.compress_type == zipfile.ZIP_STORED and file.read(magic) == np.lib.format.magic(1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() - begin + math.prod(shape) * dtype.itemsize
            if not (dtype.hasobject or fortran or 0 in shape) and size == info.file_size:
                return np.memmap(path, dtype, "c", file.tell(), shape)
    return _array(arrays, key, repr(str(path)))


def _one_of_many(
    labels: dict[str, NDArray[Any]], column: int | None, names: Sequence[str] | None, where: str
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """One column of 0 and 1 in each array of labels, as a task of two classes."""
    width = min(y.shape[1] if y.ndim == 2 else 1 for y in labels.values())
    if column is None:
        raise InputError(
            f"{where} has {width} labels an image, and one is needed: ask for a column as two "
            "classes, e.g. "
            f"npz:FILE#0 (columns 0 to {width - 1})"
        )
    if width < 2 or column >= width:
        raise InputError(
            f"{where} has no label column {column}"
            + (
                f": take one of 0 to {width - 1}"
                if width > 1
                else ": its images have one label each, leave #"
            )
        )
    taken = {name: y[:, column] for name, y in labels.items()}
    if any(not np.isin(y, (0, 1)).all() for y in taken.values()):
        raise InputError(f"label column {column} of {where} must hold 0 and 1 only")
    name = names[column] if names is not None and len(names) == width else f"label {column}"
    return taken, [f"no {name}", name]


def _classes(
    labels: Sequence[torch.Tensor], names: Sequence[str] | None, where: str, *, allow_empty: bool
) -> tuple[str, ...]:
    """The class names; without any, numbers up to the highest label of any split."""
    y = torch.cat(list(labels))
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    most = len(names) - 1 if names is not None else high
    if low < 0 or high > most:
        bound = f"[0, {most}], one for each name in classes" if names is not None else "0, 1, ..."
        raise InputError(f"the labels of {where} must lie in {bound}, got [{low}, {high}]")
    classes = tuple(names) if names is not None else tuple(str(label) for label in range(high + 1))
    if len(classes) < 2:
        raise InputError(f"{where} has one class only, and a classifier needs at least two")
    check_filled(y, classes, where, allow_empty=allow_empty or names is not None)
    return classes

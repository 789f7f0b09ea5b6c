"""Arrays in one .npz file, in the layout of MedMNIST (Yang et al. 2023)."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.checks import BROKEN, InputError, places, scale_of
from poise.data.arrays import ImageSet, Split, check_filled, prepare_images
from poise.data.decoding import high_byte
from poise.data.folders import SPLITS, at_home
from poise.preparation import AS_IT_IS, Preparation

MOST_SIGNED = 2**63 - 1
MOST = 10_000  # classes, where there are not as many images
UNPACKED, RATIO = (
    2**30,
    64,
)  # what an array may unpack to: a gigabyte, or so many times its bytes in the file


def npz(
    file: str,
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """Arrays SPLIT_images and SPLIT_labels of an .npz file; FILE#7 asks whether label 7 applies.

    Images are uint8 or uint16 (the high 8 of its `preparation.bits`, 16 by default): (n, h, w) grey,
    (n, h, w, 3) colour, or (n, d, h, w) volumes, whose slices become channels. Labels are (n,) or (n, 1)
    numbers from 0; of (n, k) labels of 0 and 1, one column is a task of two classes. An array `classes`
    may name them.
    Arrays that are not compressed are read from the disk as they are needed. `root` and `download`
    play no part. All 18 sets of MedMNIST are in this layout.

    Raises:
        InputError: a file without these arrays, a damaged one, one that unpacks to much more than it is,
            pickled objects, or labels out of range.
    """
    path, column = _column(str(at_home(file)))
    arrays = _open(path)
    where = repr(str(path))
    _check_keys(arrays, split, where)
    pixels = as_pixels(
        _map(path, f"{split}_images", arrays), f"{split}_images of {where}", bits=preparation.bits
    )
    labels: dict[str, NDArray[Any]] = {
        name: read_array(arrays, f"{name}_labels", where) for name in SPLITS if f"{name}_labels" in arrays
    }
    names = _names(read_array(arrays, "classes", where), where) if "classes" in arrays else None
    if column is not None or any(y.ndim == 2 and y.shape[1] > 1 for y in labels.values()):
        labels, names = _one_of_many(labels, column, names, where)
    y = {name: as_labels(values, f"{name}_labels of {where}") for name, values in labels.items()}
    classes = _classes(list(y.values()), names, where, allow_empty=preparation.allow_empty)
    if len(y[split]) != len(pixels):
        raise InputError(f"{where} has {len(pixels)} {split}_images and {len(y[split])} {split}_labels")
    if not len(pixels):
        raise InputError(f"{split}_images of {where} is empty")
    title = path.stem if column is None else f"{path.stem}#{column}"
    return prepare_images(ImageSet(title, torch.from_numpy(pixels), y[split], classes), preparation)


def as_pixels(images: NDArray[Any], where: str, *, bits: int | None = None) -> NDArray[np.uint8]:
    """The images as (n, c, h, w) of uint8.

    >>> as_pixels(np.zeros((5, 8, 9, 3), np.uint8), "it").shape
    (5, 3, 8, 9)
    """
    if images.dtype.kind != "u" or images.dtype.itemsize > 2:
        raise InputError(
            f"{where} holds {images.dtype} values, and uint8 in [0, 255] or uint16 is needed"
            + _to_bytes(images)
        )
    if images.ndim not in (3, 4):
        raise InputError(
            f"{where} has shape {images.shape}, and (n, h, w), (n, h, w, 3) or (n, d, h, w) is needed"
        )
    last = images.shape[-1]
    unclear = images.ndim == 4 and last not in (1, 3) and images.shape[1] not in (1, 3)
    if unclear and last < min(images.shape[1:3]):
        raise InputError(
            f"{where} has shape {images.shape}, which reads as {last} channels: give grey (n, h, w), "
            f"colours {'[..., :3], ' if last == 4 else ''}or channels first, (n, {last}, h, w)"
        )
    if images.dtype.itemsize == 2:
        images = high_byte(images, bits, where)
    if images.ndim == 3:
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if last in (1, 3) else images


def _names(classes: NDArray[Any], where: str) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind not in "Uiu":
        raise InputError(
            f"the array classes of {where} must hold one text a class, got {classes.dtype} of shape "
            f"{classes.shape}: save np.array(['name', ...])"
        )
    return [str(name) for name in classes]


def _to_bytes(images: NDArray[Any]) -> str:
    """The range of such values, and how they become whole numbers of 8 or 16 bits, where that is clear."""
    if images.dtype.kind not in "buif" or not images.size:
        return ""
    if images.dtype.kind == "b":
        return ": save 255 * images.astype('uint8')"
    values = images.reshape(len(images), -1) if images.ndim else images.reshape(1, 1)
    if images.dtype.kind == "f" and not (finite := np.isfinite(values).all(axis=1)).all():
        return f", and NaN or infinite values in {places(torch.from_numpy(~finite))}: leave these out"
    low, high = float(values.min()), float(values.max())
    whole = images.dtype.kind != "f"
    found = f", got values in [{low:.4g}, {high:.4g}]: "
    white = scale_of(low, high, whole=whole)
    if white == 1:
        return found + "save (255 * images).round().astype('uint8')"
    if white is not None:
        kind = "uint8" if white == 255 else "uint16"
        return found + f"save images{'' if whole else '.round()'}.astype('{kind}') if white is {white}"
    if not whole and -1 <= low < 0 and high <= 1:
        return found + "save (127.5 * (images + 1)).round().astype('uint8') if black is -1"
    return found + "save (255 * (images - black) / (white - black)).round().astype('uint8')"


def as_labels(y: NDArray[Any], where: str) -> torch.Tensor:
    """The labels as (n,) of int64."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    whole = y.dtype.kind == "b" or (y.dtype.kind == "f" and bool((y == np.round(y)).all()))
    if y.ndim != 1 or y.dtype.kind not in "iu":
        way = ": save labels.astype('int64')" if y.ndim == 1 and whole else ""
        raise InputError(
            f"{where} must hold one whole number an image, got {y.dtype} of shape {y.shape}{way}"
        )
    if y.dtype == np.uint64 and (y > MOST_SIGNED).any():
        raise InputError(f"{where} must be numbered from 0, got {y.max()}")
    return torch.from_numpy(y.astype(np.int64))


def _column(file: str) -> tuple[Path, int | None]:
    before, _, after = file.rpartition("#")
    if before and after.isdigit() and not Path(file).exists():
        return Path(before), int(after)
    return Path(file), None


def _open(path: Path) -> Any:
    if not path.is_file():
        way = f": that is a folder, folder:{path}" if path.is_dir() else ""
        raise InputError(f"there is no file {str(path)!r}{way}")
    try:
        arrays = np.load(path, mmap_mode="r", allow_pickle=False)  # one array alone is refused, not read
    except BROKEN as error:
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


def read_array(arrays: Any, key: str, where: str) -> NDArray[Any]:
    """An array of an .npz file, which is just as long as it says, and not far longer than its zip file.

    Raises:
        InputError: another length, pickled objects, or a damaged file.
    """
    with _reading(key, where):
        _check_claims(arrays.zip, f"{key}.npy")
        return np.asarray(arrays[key])


@contextmanager
def _reading(key: str, where: str) -> Iterator[None]:
    """Around what reads an array: a damaged one is refused by its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the array {key} of {where} {error}") from error
    except BROKEN as error:
        pickled = "pickled objects are refused, since they can run code; save plain numbers"
        raise InputError(
            f"the array {key} of {where} cannot be read ({error}): "
            + (pickled if "allow_pickle" in str(error) else "the file is damaged, fetch or save it again")
        ) from error


def _check_claims(arrays: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """An array's shape, order, kind of numbers and place in its file, which is just as long as these say.

    Raises:
        InputError: another length, or one far beyond that of the zip file.
    """
    info, form = arrays.getinfo(name), np.lib.format
    with arrays.open(info) as file:
        version = form.read_magic(file)
        header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = header(file)
        begin = file.tell()
    size = begin + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (size != info.file_size or min(shape, default=0) < 0):
        raise InputError(
            f"says it has the shape {shape} of {dtype}, {size} bytes, and the file holds {info.file_size}: "
            "it is damaged, fetch or save it again"
        )
    if info.file_size > max(UNPACKED, RATIO * info.compress_size):
        raise InputError(
            f"would unpack to {info.file_size / 1e9:.1f} GB from {info.compress_size / 1e6:.1f} MB: save "
            "it with np.savez, uncompressed, and it is read from the disk as it is needed"
        )
    return shape, fortran, dtype, begin


def _map(path: Path, key: str, arrays: Any) -> NDArray[Any]:
    """The array, mapped from the disk if it lies there uncompressed; a write would stay in memory."""
    where, name = repr(str(path)), f"{key}.npy"
    with _reading(key, where):
        info = arrays.zip.getinfo(name)
        if info.compress_type == zipfile.ZIP_STORED:
            shape, fortran, dtype, begin = _check_claims(arrays.zip, name)
            if not (dtype.hasobject or fortran or 0 in shape):
                _check_sum(arrays.zip, info)
                with path.open("rb") as file:
                    file.seek(info.header_offset)
                    lengths = struct.unpack("<26x2H", file.read(30))  # at the end of a local header
                return np.memmap(path, dtype, "c", info.header_offset + 30 + sum(lengths) + begin, shape)
    return read_array(arrays, key, where)


def _check_sum(arrays: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    with arrays.open(info) as whole:  # which looks at the checksum at its end
        while whole.read(2**20):
            pass


def _one_of_many(
    labels: dict[str, NDArray[Any]], column: int | None, names: Sequence[str] | None, where: str
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """One column of 0 and 1 in each array of labels, as a task of two classes."""
    width = min(y.shape[1] if y.ndim == 2 else 1 for y in labels.values())
    if column is None:
        one_hot = all(y.ndim == 2 and _is_one_hot(y) for y in labels.values())
        way = "save labels.argmax(axis=1), for one of them is 1 in each image, or " if one_hot else ""
        raise InputError(
            f"{where} has {width} labels an image, and one is needed: {way}ask for a column as two "
            f"classes, e.g. npz:FILE#0 (columns 0 to {width - 1})"
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


def _is_one_hot(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "biuf" and bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())


def _classes(
    labels: Sequence[torch.Tensor], names: Sequence[str] | None, where: str, *, allow_empty: bool
) -> tuple[str, ...]:
    """The class names; without any, numbers up to the highest label of any split."""
    y = torch.cat(list(labels))
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    most = len(names) - 1 if names is not None else high
    if low < 0 or high > most:
        bound = f"[0, {most}], one for each name in classes" if names is not None else "0, 1, ..."
        way = ": save labels - 1, where they are counted from 1" if (low, high) == (1, most + 1) else ""
        raise InputError(f"the labels of {where} must lie in {bound}, got [{low}, {high}]{way}")
    if names is None and high >= max(MOST, len(y)):
        raise InputError(
            f"the labels of {where} go up to {high}, and there are {len(y)} of them: number the classes "
            "from 0"
        )
    classes = tuple(names) if names is not None else tuple(str(label) for label in range(high + 1))
    if len(classes) < 2:
        raise InputError(f"{where} has one class only, and a classifier needs at least two")
    if low == 1 and names is None and not allow_empty and len(y.unique()) == high:
        raise InputError(
            f"the labels of {where} are 1 to {high}, and none is 0: save labels - 1, or keep class 0 "
            "without images by allow_empty=True (--read.allow-empty)"
        )
    check_filled(y, classes, where, allow_empty=allow_empty or names is not None)
    return classes

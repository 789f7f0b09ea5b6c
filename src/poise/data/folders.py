"""Image files in a folder a class: the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from poise.checks import InputError, check_text, name_some
from poise.data.arrays import ImageSet, Split, check_filled, keep
from poise.data.decoding import open_image
from poise.data.digests import digest_of
from poise.data.pictures import pictures, readable
from poise.preparation import AS_IT_IS, Preparation

SPLITS: tuple[Split, ...] = ("train", "test", "val")
NAMES: dict[Split, tuple[str, ...]] = {  # what folders of splits are called, in any case
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Paths:
    """Image files on disk, as a source."""

    paths: tuple[str, ...]
    verify: bool = False  # read files for their digests, whatever is known of them

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The file's path, in quotation marks."""
        return repr(self.paths[i])

    def image(self, i: int) -> Image.Image:
        """The file, its header read."""
        return open_image(Path(self.paths[i]), self.name(i))

    def digest(self, i: int) -> bytes:
        """A SHA-256 of the file."""
        try:
            return digest_of(Path(self.paths[i]), verify=self.verify)
        except OSError as error:
            raise InputError(f"{self.name(i)} cannot be read: {error.strerror}") from error

    def alike(self) -> bool:
        """Never: each file has a size of its own."""
        return False


def folder(
    path: str,
    split: Split,
    *,
    root: Path = Path("data"),
    download: bool = False,
    preparation: Preparation = AS_IT_IS,
) -> ImageSet:
    """The images in PATH/SPLIT/CLASS, or in PATH/CLASS where there are no splits (folders of image files).

    Classes have their folders' names and are numbered in the order of these, as in torchvision's
    ImageFolder; a class that another split has is counted here too. `root` and `download` play no
    part: the path is the whole path.

    Raises:
        InputError: a folder that is not there, of another split, with no images, one class only, an
            empty class, damaged files, or images of different sizes and no size to bring them to.
    """
    top = at_home(path)
    if not top.is_dir():
        way = (
            f"that is a file, npz:{path}"
            if top.suffix == ".npz" and top.is_file()
            else ("name one with a folder of images a class")
        )
        raise InputError(f"there is no folder {path!r}: {way}")
    return read_folder(top, split_folder(top, split), preparation)


def read_folder(
    top: Path,
    part: Path,
    preparation: Preparation,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """The images of one split's folder.

    Args:
        top: the folder of the splits; the same as `part` where there are none.
        part: the folder of the classes.
        preparation: of the images.
        name: what to call the set; the folder's name by default.
        classes: the published class names; those of the folders by default.
    """
    found = class_names(top, part)
    if classes is not None and tuple(found) != tuple(classes):
        raise InputError(
            f"{str(part)!r} must hold the class folders {name_some(classes)}, and holds "
            f"{name_some(found)}: rename them, or name the folder as data of its own, folder:{top}"
        )
    kept = keep(found, [compose(name) for name in preparation.drop], repr(str(part)))
    paths, labels = [], []
    walk = Walk(part.resolve())
    there = {compose(own): own for own in folders_in(part)}
    for label, kind in enumerate(kept):
        files = list(walk.images(part / there.get(kind, kind)))
        paths += files
        labels += [label] * len(files)
    walk.tell()
    y = torch.tensor(labels, dtype=torch.int64)
    source = Paths(tuple(paths), preparation.verify)
    if not paths:
        raise InputError(
            f"there are no images in the class folders of {str(part)!r} ({', '.join(ENDINGS)})"
        )
    chosen = torch.arange(len(paths))
    if preparation.skip_damaged:
        fine = readable(source, chosen, preparation.bits)
        chosen, y = chosen[fine], y[fine]
    check_filled(y, kept, repr(str(part)), allow_empty=preparation.allow_empty)
    full = top.resolve()
    title = name or (full.parent if _split_of(full.name) else full).name
    return ImageSet(title, pictures(source, chosen, preparation), y, kept)


def split_folder(top: Path, split: Split) -> Path:
    """Where the classes of a split lie, under the folder that was named."""
    there = split_folders(top)
    if split in there:
        return there[split]
    if there:
        raise InputError(
            f"{str(top)!r} has the split{'s' if len(there) > 1 else ''} {', '.join(there)} and no "
            f"{split!r}: take one of these (--split {next(iter(there))})"
        )
    own = _split_of(top.resolve().name)
    if own not in (None, split):
        raise InputError(
            f"{str(top)!r} is the folder of split {own!r}, and {split!r} is asked for: name the folder "
            f"above it, or take --split {own}"
        )
    return top


def split_folders(top: Path) -> dict[Split, Path]:
    """The folders of splits in a folder, called train or training, test or testing, val ...

    One with images and without folders in it is a class of that name, if there are other classes.
    """
    found: dict[Split, Path] = {}
    names = sorted(folders_in(top))
    alone = all(map(_split_of, names))
    for name in names:
        split = _split_of(name)
        if split is not None and (alone or folders_in(top / name) or not _has_images(top / name)):
            found.setdefault(split, top / name)
    return found


def class_names(top: Path, part: Path) -> list[str]:
    """The names of the class folders in all splits, sorted: labels must mean the same in each.

    Raises:
        InputError: names that are not UTF-8, or that differ between splits in their spelling alone.
    """
    above = part.resolve().parent if part == top and _split_of(top.resolve().name) else top
    places = dict.fromkeys(place.resolve() for place in (part, *split_folders(above).values()))
    held = {place: folders_in(place) for place in places}
    for place, names in held.items():
        if twice := [name for name, n in Counter(map(compose, names)).items() if n > 1]:
            raise InputError(f"{str(place)!r} holds two folders of the name {twice[0]!r}: join them")
    found = sorted({compose(name) for names in held.values() for name in names})
    spelled: dict[str, str] = {}
    for name in found:
        check_text(name, f"the class folder {name!r} in {str(top)!r}")
        other = spelled.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()).strip(), name)
        if other != name and not any({name, other} <= {*map(compose, names)} for names in held.values()):
            raise InputError(
                f"the class folders {other!r} and {name!r} of the splits in {str(above)!r} differ in their "
                "spelling alone: give them one name"
            )
    return found


def at_home(path: str) -> Path:
    """The path, with `~` as the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path!r} is in nobody's home folder here: write the path out") from error


def compose(name: str) -> str:
    """The name with letters and their accents as one, however a file system keeps them (NFC)."""
    return unicodedata.normalize("NFC", name)


class Walk:
    """Class folders gone through one after the other: what links lead to is taken once."""

    def __init__(self, top: Path) -> None:
        self.top = top  # of the class folders, without links
        self.met: dict[tuple[int, int], str] = {}  # a folder's or a link's target: where it was met first
        self.left_out: list[str] = []

    def images(self, folder: Path) -> Iterator[str]:
        """The image files in a folder and the folders in it, in sorted order; none if it is not there.

        Raises:
            InputError: what is in one class is linked into another.
        """
        ahead = [str(folder)] if folder.is_dir() else []
        while ahead:
            where = ahead.pop()
            if not self._is_new(where, str(folder)):
                continue
            with os.scandir(where) as found:
                entries = sorted((e for e in found if not _is_hidden(e.name)), key=lambda entry: entry.name)
            names = {entry.name for entry in entries}
            inner = [entry.path for entry in entries if _is(entry.is_dir)]
            for entry in entries:
                if _is(entry.is_dir):
                    continue
                usable = entry.name.lower().endswith(ENDINGS) and _is(entry.is_file)
                if not usable or _mask_of(entry.name) in names:
                    self.left_out.append(entry.path)
                elif not entry.is_symlink() or self._is_new(entry.path, str(folder)):
                    yield entry.path
            ahead += reversed(inner)

    def tell(self) -> None:
        """Warn of the files that are not taken, by their endings."""
        kinds = Counter(_kind(path) for path in self.left_out)
        if kinds:
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            warnings.warn(
                f"left out of {str(self.top)!r}: {counts} "
                f"({', '.join(sorted(self.left_out)[:3])}, ...): images are the files that end in "
                f"{', '.join(ENDINGS)}",
                stacklevel=2,
            )

    def _is_new(self, path: str, folder: str) -> bool:
        """Whether this folder, or this link's target, is met for the first time."""
        real, info = Path(path).resolve(), Path(path).stat()
        before = self.met.setdefault((info.st_dev, info.st_ino), path)
        inside = real.is_file() and real.is_relative_to(self.top)
        if inside and not any(map(_is_hidden, real.relative_to(self.top).parts)):
            before = str(real)  # which is met in its own place
        mine = (folder, str(Path(folder).resolve()))
        elsewhere = not before.startswith(tuple(place + os.sep for place in mine)) and before not in mine
        if before != path and elsewhere:
            raise InputError(
                f"{path!r} leads to {before!r}, which is in another class: an image cannot have two "
                "labels, remove one of the two"
            )
        return before == path


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out, in any order."""
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(ENDINGS) and not _is_hidden(entry.name) for entry in entries)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def _is(ask: Callable[[], bool]) -> bool:
    """What a folder's entry says of itself; False for a link that leads in circles."""
    try:
        return ask()
    except OSError:
        return False


def _mask_of(name: str) -> str | None:
    """The image that a segmentation belongs to by its name, as in the published BUSI."""
    image = re.sub(r"_mask(_[0-9]+)?(?=[.][^.]+$)", "", name)
    return image if image != name else None


def _kind(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        return "no file (a pipe, a link to nothing)"
    ending = file.suffix.lower()
    return "mask" if ending in ENDINGS else ending or "without an ending"


def _split_of(name: str) -> Split | None:
    return next((split for split, names in NAMES.items() if name.lower() in names), None)

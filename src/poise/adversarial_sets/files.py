"""How an adversarial set lies on the disk, and how little is believed of what is read from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poise import store
from poise.adversarial_sets.rounding import check_8_bits, check_budget
from poise.checks import BROKEN, InputError, check_choice, check_count, check_number, check_text
from poise.data.npz import read_array
from poise.job_file import read_json
from poise.shapes import bytes_of
from poise.threat import BALLS

FORMAT = "poise adversarial set 1"
MODES = {1: "L", 3: "RGB"}  # a picture of so many channels
PICTURES = ("x", "x_adv")
FACTS = "set.json"
DAMAGE = (*BROKEN, Image.DecompressionBombError)


def write_set(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Write a set whole or not at all; the fingerprint that is written into it.

    A path that ends in .npz becomes a file of float32 images, any other one a folder: `x` and `x_adv`
    with a PNG an image, the rest in set.json.
    """
    if path.exists() and (path.is_dir() or path.suffix != ".npz"):
        raise InputError(f"{str(path)!r} is there already: name another path, or remove it")
    facts = {**facts, "format": FORMAT}
    mark = seal(facts, tensors)
    facts = {**facts, "fingerprint": mark}
    try:
        with store.replacement(path) as new:
            if path.suffix == ".npz":
                arrays: dict[str, Any] = {name: values.numpy() for name, values in tensors.items()}
                np.savez_compressed(new, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)
            else:
                _write_folder(new, facts, tensors)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    return mark


def read_set(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of a set, whose fingerprint fits them; nothing in it is run.

    Raises:
        InputError: no set, a damaged one, or one that was changed after it was written.
    """
    try:
        facts, tensors = _read_file(path) if path.is_file() else _read_folder(path)
        mark = facts.pop("fingerprint", None)
        if facts.get("format") != FORMAT:
            raise ValueError(f"its format is {facts.get('format')!r}, not {FORMAT!r}")
    except DAMAGE as error:
        raise InputError(f"{str(path)!r} is no adversarial set, or a damaged one: {error}") from error
    if mark != seal(facts, tensors):
        raise InputError(
            f"{str(path)!r} was changed after it was written: its content does not fit its fingerprint"
        )
    return facts, tensors


def check_channels(x: Tensor) -> None:
    """Refuse images that are neither grey nor RGB, which PNG cannot hold."""
    if x.shape[1] not in MODES:
        raise InputError(f"x must be grey or RGB for PNGs, got {x.shape[1]} channels: save as .npz")


def seal(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a set says. It shows a change, not who made it: publish it apart."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(
            f"{name} {values.numpy().dtype.str} {tuple(values.shape)}".encode() + bytes_of(values)
        )
    return digest.hexdigest()


def _write_folder(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    for name in PICTURES:
        (folder / name).mkdir()
        for place, pixels in enumerate((255 * tensors[name]).round().byte()):
            picture = pixels[0] if MODES[len(pixels)] == "L" else pixels.permute(1, 2, 0)
            Image.fromarray(picture.contiguous().numpy()).save(_file(folder, name, place))
    rest = {name: values.tolist() for name, values in tensors.items() if name not in PICTURES}
    shape = list(tensors["x"].shape)
    store.write_json(folder / FACTS, {"facts": facts, "shape": shape, "columns": rest})


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = read_json(folder / FACTS)
    facts, columns, shape = dict(content["facts"]), dict(content["columns"]), content["shape"]
    n, channels, height, width = shape
    if any(type(v) is not int for v in shape) or n < 1 or n != len(columns["y"]) or channels not in MODES:
        raise ValueError(f"{len(columns['y'])} labels for images of shape {shape}")
    tensors = {name: _column(name, values) for name, values in columns.items()}
    for name in PICTURES:
        pixels = [
            _picture(_file(folder, name, place), MODES[channels], (width, height)) for place in range(n)
        ]
        tensors[name] = torch.stack(pixels).float() / 255
    return facts, tensors


def _column(name: str, values: Any) -> Tensor:
    whole = name in ("y", "answer")
    if not isinstance(values, list) or any(
        type(v) not in ((int,) if whole else (int, float)) for v in values
    ):
        raise ValueError(f"{name} must be a list of {'whole ' * whole}numbers")
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float32)


def _picture(file: Path, mode: str, size: tuple[int, int]) -> Tensor:
    with Image.open(file, formats=["PNG"]) as picture:
        if (picture.mode, picture.size) != (mode, size):  # known before the pixels are unpacked
            raise ValueError(f"{file.name} is {picture.mode} {picture.size}, not {mode} {size}")
        pixels = torch.tensor(np.array(picture))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


def _file(folder: Path, name: str, place: int) -> Path:
    return folder / name / f"{place:06d}.png"


def _read_file(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with np.load(file, allow_pickle=False) as content:
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz file")
        arrays = {name: read_array(content, name, repr(str(file))) for name in content.files}
    facts = json.loads(str(arrays.pop("facts")))
    if not isinstance(facts, dict):
        raise ValueError("its facts are no table")
    return facts, {name: torch.tensor(values) for name, values in arrays.items()}


KINDS = {
    "x": torch.float32,
    "x_adv": torch.float32,
    "y": torch.int64,
    "share": torch.float32,
    "answer": torch.int64,
    "confidence": torch.float32,
}
VERIFIED = {"answer", "confidence"}


def read_checked(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The facts, tensors and fingerprint of a set that says nothing impossible.

    Raises:
        InputError: what cannot be right, and where.
    """
    facts, tensors = read_set(path)
    mark = seal(facts, tensors)
    try:
        _check_facts(facts)
        _check_tensors(facts, tensors)
        check_budget(tensors["x_adv"], tensors["x"], eps=facts["eps"], norm=facts["norm"])
        if path.is_dir():
            check_8_bits(tensors["x"])
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be right: {error}") from error
    return facts, tensors, mark


def _check_facts(facts: dict[str, Any]) -> None:
    absent = {"eps", "norm", "attack", "keep_labels", "classes"} - facts.keys()
    if absent:
        raise InputError(f"it says nothing of {', '.join(sorted(absent))}")
    check_number("eps", facts["eps"], 0)
    check_choice("norm", facts["norm"], BALLS)
    if not isinstance(facts["attack"], str) or not isinstance(facts["keep_labels"], bool):
        raise InputError("attack must be a text and keep_labels true or false")
    check_text(facts["attack"], "attack")
    if facts["classes"] is not None:
        check_count("classes", facts["classes"], 2)
    names = facts.get("class_names")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (texts and len(names) == facts["classes"]):
        raise InputError("class_names must be as many texts as there are classes")


def _check_tensors(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    verified = facts["classes"] is not None
    expected = KINDS.keys() if verified else KINDS.keys() - VERIFIED
    if tensors.keys() != expected:
        raise InputError(f"it must hold {', '.join(sorted(expected))}, got {', '.join(sorted(tensors))}")
    n = len(tensors["x"]) if tensors["x"].ndim else 0
    for name, values in tensors.items():
        if values.dtype != KINDS[name]:
            raise InputError(f"{name} must be {KINDS[name]}, got {values.dtype}")
        if name not in PICTURES and values.shape != (n,):
            raise InputError(f"{name} must have shape ({n},), one an image, got {tuple(values.shape)}")
    for name in ("share", "confidence") if verified else ("share",):
        if not ((tensors[name] >= 0) & (tensors[name] <= 1)).all():
            raise InputError(f"{name} must lie in [0, 1]")
    most = facts["classes"] - 1 if verified else 2**31
    for name in ("y", "answer") if verified else ("y",):
        if not ((tensors[name] >= 0) & (tensors[name] <= most)).all():
            raise InputError(f"{name} must lie in [0, {most}], the model's classes")

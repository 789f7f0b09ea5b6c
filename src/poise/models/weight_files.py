"""Files of weights, read without running code and without asking for more memory than they are long."""

import json
import mmap
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from poise.checks import BROKEN, InputError

RATIO, SLACK = 16, 2**20  # what a zip file may unpack to, of its own size; weights hardly compress
DEEPEST = 3  # levels at which checkpoints keep state dicts
NOT_NETS = re.compile(r"optim|sched|scaler|lr_|loss|criterion|ema_state|rng")
FIRST = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")


def state_dicts(file: str | Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a file, by the key under which it keeps them, the likeliest first.

    Raises:
        InputError: no such file, a damaged one, or one without named tensors that could be weights.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise InputError(f"no weights at {str(file)!r}: name a .safetensors file or a state dict")
    content = _content(file)
    found = dict(sorted(_find_states(content, "", 0), key=lambda pair: _place(pair[0])))
    if not found:
        kept = f", but {_list_keys(content)}" if isinstance(content, Mapping) and content else ""
        raise InputError(
            f"the weights in {str(file)!r} are no state dict, which maps names to tensors{kept}"
        )
    for state in found.values():
        for name, value in state.items():
            _check_plain(value, f"the tensor {name} in {str(file)!r}")
    return found


def _content(file: Path) -> object:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            _check_zip(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        _refuse_allocations(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except UnpicklingError as error:
        raise InputError(_not_tensors(file, str(error))) from error
    except (*BROKEN, SafetensorError) as error:
        raise InputError(f"the weights in {str(file)!r} cannot be read: {error}") from error


def _check_zip(file: Path) -> None:
    """Refuse a zip file that would unpack to much more than it is, or is not what was written.

    torch reads past its checksums, and can be told to write none: then all are 0.
    """
    with zipfile.ZipFile(file) as content:
        entries = content.infolist()
        claimed = sum(entry.file_size for entry in entries)
        size = file.stat().st_size
        if claimed > RATIO * size + SLACK:
            raise InputError(
                f"the weights in {str(file)!r} would unpack to {claimed / 1e6:.0f} MB from "
                f"{size / 1e6:.1f}: weights do not compress to less than 1/{RATIO}, save them again"
            )
        if any(entry.CRC for entry in entries) and (damaged := content.testzip()):
            raise InputError(
                f"the weights in {str(file)!r} are damaged: the checksum of {damaged} does not fit its "
                "bytes; copy the file again from where it is whole"
            )


def _refuse_allocations(file: Path) -> None:
    """Refuse the one call that torch lets a pickle make that fills as much memory as it asks for."""
    with file.open("rb") as stream:
        if file.stat().st_size == 0:
            raise InputError(f"the weights in {str(file)!r} cannot be read: the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray\n") >= 0:
                raise InputError(f"the weights in {str(file)!r} hold a bytearray: keep the tensors alone")


def _not_tensors(file: Path, text: str) -> str:
    """What to do with a file that torch refuses to unpickle."""
    name = re.search(r"GLOBAL ([\w.]+)|class ['\"]?([\w.]+)", text)
    kind = next(filter(None, name.groups()), "") if name else ""
    if not kind or "weights_only" not in text:
        return f"the weights in {str(file)!r} cannot be read: it is no file that torch.save has left whole"
    return (
        f"the weights in {str(file)!r} cannot be read without running code of its maker: beside tensors "
        f"there is a pickled {kind}; where you trust it, keep the tensors alone: torch.save(torch.load("
        "FILE, weights_only=False)[KEY], 'weights.pt'), of a whole module its .state_dict()"
    )


def _find_states(content: object, key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in a checkpoint, wherever they are kept."""
    if not isinstance(content, Mapping) or not content or depth > DEEPEST:
        return
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        averaged = set(content) - {"n_averaged"}  # of torch's AveragedModel
        whole = all(name.startswith("module.") for name in averaged)
        yield key, {name: content[name] for name in content if name in averaged or not whole}
        return
    for name, value in content.items():
        if isinstance(name, str) and not NOT_NETS.search(name.lower()):
            yield from _find_states(value, f"{key}.{name}".strip("."), depth + 1)


def _place(key: str) -> int:
    return FIRST.index(key) if key in FIRST else len(FIRST)


def _list_keys(content: Mapping[object, object]) -> str:
    """Its keys and what is under them, as many as a line holds."""
    items = [f"{name!r} ({type(value).__name__})" for name, value in list(content.items())[:12]]
    more = f" and {len(content) - len(items)} more" if len(content) > len(items) else ""
    return f"{', '.join(items)}{more}"


def _check_plain(value: Tensor, what: str) -> None:
    """Refuse a tensor that is not all there: without storage, or with one shorter than itself."""
    kinds = {
        "sparse": value.layout != torch.strided,
        "nested": value.is_nested,
        "quantised": value.is_quantized,
        "without numbers (meta)": value.device.type != "cpu",
        f"a {type(value).__name__}": type(value) not in (Tensor, torch.nn.Parameter),
    }
    for kind, found in kinds.items():
        if found:
            raise InputError(f"{what} is {kind}: save it as a plain one, e.g. of .dequantize().to_dense()")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{what} repeats {value.untyped_storage().nbytes()} bytes to the shape {tuple(value.shape)}: "
            "save it .contiguous()"
        )


def names_in(file: str | Path) -> tuple[str, ...] | None:
    """The names of the classes that a run's weights are for; None where the file does not say."""
    try:
        with safe_open(str(file), framework="pt") as content:
            names = json.loads((content.metadata() or {}).get("classes", "null"))
    except (OSError, SafetensorError, ValueError):  # no such file: whoever reads the weights will say so
        return None
    known = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if known else None

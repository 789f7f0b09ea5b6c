"""The run store: one folder a job. JSON, parquet and safetensors; every write atomic; no pickles."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.checks import InputError

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

Json = Mapping[str, Any]


def key_of(job: Json) -> str:
    """A name for the job's configuration: 16 hexadecimal digits of its SHA-256.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(job, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(file: Path) -> str:
    """The SHA-256 of a file's bytes, 16 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def open_run(folder: Path, job: Json) -> Path:
    """Make the job's folder, or find it again: the same job resumes, another one is refused.

    Raises:
        InputError: the folder holds another configuration, something else, or cannot be written.
    """
    job = json.loads(json.dumps(job))
    if (folder / "job.json").exists():
        there = read_job(folder)["job"]
        if there != job:
            differ = [
                f"{name}: {there.get(name)!r} there, {job.get(name)!r} now"
                for name in sorted({*there, *job})
                if there.get(name) != job.get(name)
            ]
            raise InputError(
                f"{str(folder)!r} holds a run of another configuration ({'; '.join(differ)}): "
                "name another --out, or remove that folder"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise InputError(f"{str(folder)!r} is there and is no run folder: name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "job.json", {"key": key_of(job), "job": job, **circumstances()})
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written: {error.strerror}") from error
    return folder


def read_job(folder: Path) -> dict[str, Any]:
    """What job.json says of a run folder: key, job and circumstances.

    Raises:
        InputError: no such run, or one that cannot be read.
    """
    file = folder / "job.json"
    if not file.is_file():
        raise InputError(f"{str(folder)!r} is no run folder: it has no job.json")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content["job"].items(), content["key"]
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(file)!r} is damaged: remove the folder and run again") from error
    return content


def note(folder: Path, **facts: Any) -> None:
    """Add facts to a run's job.json, beside its configuration."""
    write_json(folder / "job.json", {**read_job(folder), **facts})


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says while files of a run are written into a message with a way out.

    Raises:
        InputError: the disk is full, or the folder cannot be written any more.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"a file in {str(folder)!r} could not be written ({error.strerror}): make room, and the same "
            "command goes on from what is there"
        ) from error


def check_room(folder: Path, size: int) -> None:
    """Refuse a disk on which so many bytes do not fit: before the work, not after it."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{str(folder)!r} has {free / 1e6:.1f} MB free and the results may need {size / 1e6:.1f} MB: "
            "make room, or name an --out on another disk"
        )


def circumstances() -> dict[str, Any]:
    """Versions, commit, machine kind and the time: what a number may depend on besides its job."""
    import torch

    packages = ("poise", "torch", "torchvision", "lightning-fabric", "torchmetrics")
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def write_json(file: Path, content: Json) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    _replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_text(file: Path, text: str) -> None:
    """Write text whole or not at all."""
    _replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_frame(file: Path, frame: pl.DataFrame) -> None:
    """Write a table as parquet, whole or not at all."""
    content = BytesIO()  # polars' error on a full disk is no OSError
    frame.write_parquet(content)
    _replace(file, lambda temporary: temporary.write_bytes(content.getbuffer()))


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(plain, dict(facts or {}))  # save_file's error on a full disk is no OSError
    _replace(file, lambda temporary: temporary.write_bytes(content))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the facts beside them.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as content:
            names = content.keys()
            tensors = {name: content.get_tensor(name) for name in names}
            return tensors, dict(content.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}") from error


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then put the result in its place in one step."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-", suffix=file.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of poise's own checkout, with a + where it was changed; None outside one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

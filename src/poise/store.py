"""The run store: one folder a job. JSON, parquet and safetensors; every write atomic; no pickles."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.checks import InputError
from poise.job_file import check_run, fault_in, read_json, refuse_damaged

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import polars as pl
    import torch
    from torch import Tensor

Json = Mapping[str, Any]
DECIDE = ("poise", "torch", "torchvision")  # packages whose versions numbers may depend on
TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}\.(json|parquet|safetensors|html|md|tex|csv)")


def key_of(job: Json) -> str:
    """A name for the job's configuration: 16 hexadecimal digits of its SHA-256.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(job, sort_keys=True, separators=(",", ":"))
    return digest(text.encode())


def file_hash(file: Path) -> str:
    """The SHA-256 of a file's bytes, 16 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def open_run(folder: Path, job: Json, *, device: torch.device | None = None) -> Path:
    """Make the job's folder, or find it again: the same job resumes, another one is refused.

    What a writer that was killed left half written is taken away; that of one at work is not.

    Raises:
        InputError: the folder holds another configuration, something else, or cannot be written.
    """
    job = json.loads(json.dumps(job))
    if fault := fault_in(job):
        raise InputError(f"such a run cannot be noted: {fault}")
    try:
        if (folder / "job.json").exists():
            _check_same(folder, job)
        elif folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise InputError(f"{str(folder)!r} is there and is no run folder: name another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "job.json", {"key": key_of(job), "job": job, **circumstances(device)})
        _sweep(folder)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written: {error.strerror}") from error
    return folder


def _check_same(folder: Path, job: Json) -> None:
    there = read_job(folder)["job"]
    differ = [
        f"{name}: {there.get(name)!r} there, {job.get(name)!r} now"
        for name in sorted({*there, *job})
        if there.get(name) != job.get(name)
    ]
    if differ:
        model = folder / "model.safetensors"
        more = f", and --weights {model} to go on from its model" if model.exists() else ""
        raise InputError(
            f"{str(folder)!r} holds a run of another configuration ({'; '.join(differ)}): "
            f"name another --out{more}, or remove that folder"
        )


def read_job(folder: Path) -> dict[str, Any]:
    """What job.json says of a run folder: key, job and circumstances, each field of its kind.

    Raises:
        InputError: no such run, or one whose job.json is damaged or was changed by hand.
    """
    file = folder / "job.json"
    try:
        there = file.is_file()
    except OSError as error:  # as of a name that is too long
        raise InputError(f"{str(folder)!r} cannot be read: {error.strerror}") from error
    if not there:
        raise InputError(f"{str(folder)!r} is no run folder: it has no job.json")
    content = read_json(file)
    check_run(file, content)
    if content["key"] != key_of(content["job"]):
        refuse_damaged(file, "its job was changed: the key is that of another one")
    return content


def note(folder: Path, **facts: Any) -> None:
    """Add facts to a run's job.json, beside its configuration.

    Raises:
        InputError: the disk is full, or the folder cannot be written any more.
    """
    with writing(folder):
        write_json(folder / "job.json", {**read_job(folder), **facts})


def leave(folder: Path, files: Mapping[str, bytes], **facts: Any) -> None:
    """Note facts and the files' digests in job.json, then write the files: the last one ends the run.

    Raises:
        InputError: the disk is full, or the folder cannot be written any more.
    """
    with writing(folder):
        note(folder, **facts, files={name: digest(content) for name, content in files.items()})
        for name, content in files.items():
            _write_bytes(folder / name, content)


def whole(folder: Path, name: str, content: Json) -> Path:
    """A file of the run whose job.json this is, if it holds what was left there.

    Raises:
        InputError: it is missing or holds something else.
    """
    file, known = folder / name, content.get("files", {}).get(name)
    try:
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        same = known is None or file_hash(file) == known
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if not same:
        refuse_damaged(file, "it does not hold what the run wrote")
    return file


def join(
    folder: Path, *, device: torch.device | None = None, devices: int | None = None
) -> list[tuple[str, str]]:
    """What differs now from the circumstances that the run has had so far; job.json notes both.

    Versions, the device, the number of devices and, on the CPU, of threads, by which gradients are summed,
    count: "torch 2.8.0" before, say, and "2.11.0" now. The number of devices only where it is given.
    """
    then, now = read_job(folder), circumstances(device)
    if devices is not None:
        now["devices"] = devices
    differ = [
        (f"{name} {then['versions'].get(name)}", str(now["versions"][name]))
        for name in DECIDE
        if then["versions"].get(name) != now["versions"][name]
    ]
    if then["device"] != now["device"]:
        differ.append((then["device"], now["device"]))
    if devices is not None and then.get("devices", devices) != devices:
        differ.append((f"{then['devices']} devices", str(devices)))
    if then["device"] == now["device"] == "cpu" and then["threads"] != now["threads"]:
        differ.append((f"{then['threads']} threads", f"{now['threads']}"))
    if differ:
        earlier = {name: then.get(name) for name in now}
        note(folder, **now, earlier=[*then.get("earlier", []), earlier])
    return differ


def threads_of(folder: Path) -> int | None:
    """The threads that the run in that folder was made with, the last ones; None if there is none."""
    return int(read_job(folder)["threads"]) if (folder / "job.json").exists() else None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run folder: no other command is at work in it meanwhile.

    The system lets go of it when this process ends, however it does.

    Raises:
        InputError: another command holds it.
    """
    with writing(folder), (folder / ".lock").open("a") as stream:
        if sys.platform != "win32" and not _lock(stream.fileno()):
            raise InputError(
                f"another command is at work in {str(folder)!r}: wait for its end, or name another --out"
            )
        yield


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


def circumstances(device: torch.device | None = None) -> dict[str, Any]:
    """Versions, commit, the device in use and the time: what a number may depend on besides its job."""
    import torch

    packages = ("poise", "torch", "torchvision", "lightning-fabric", "torchmetrics")
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "commit": _commit(),
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def write_json(file: Path, content: Json) -> None:
    """Write JSON whole or not at all."""
    write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write text whole or not at all."""
    _write_bytes(file, text.encode())


def write_frame(file: Path, frame: pl.DataFrame) -> None:
    """Write a table as parquet, whole or not at all."""
    _write_bytes(file, frame_bytes(frame))


def frame_bytes(frame: pl.DataFrame) -> bytes:
    """A table as parquet."""
    content = BytesIO()  # polars' error on a full disk is no OSError
    frame.write_parquet(content)
    return content.getvalue()


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all."""
    _write_bytes(file, tensor_bytes(tensors, facts))


def tensor_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """Tensors as safetensors."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(plain, dict(facts or {}))  # save_file's error on a full disk is no OSError


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


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes the place of `path` in one step at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-"))
    try:
        new = beside / path.name
        yield new
        new.replace(path)
    finally:
        shutil.rmtree(beside)


def digest(content: bytes) -> str:
    """The SHA-256 of bytes, 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def _write_bytes(file: Path, content: bytes) -> None:
    _replace(file, lambda temporary: temporary.write_bytes(content))


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then put the result in its place in one step."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-", suffix=file.suffix)
    temporary = Path(name)
    _lock(handle)  # the system unlocks it when this process ends, however it does
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the open file is this process's alone from now on; no where nothing can be locked."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(folder: Path) -> None:
    """Take away what writers that are no more left half written in the folder."""
    for file in folder.iterdir():
        if TEMPORARY.fullmatch(file.name) is None or not file.is_file() or file.is_symlink():
            continue
        with suppress(OSError), file.open("rb+") as stream:
            if _lock(stream.fileno()):
                file.unlink()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(device: torch.device | None) -> str:
    import torch

    if device is None or device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _commit() -> str | None:
    return _commit_at(Path(__file__).parents[2])


@cache  # git takes longer than a small attack
def _commit_at(root: Path) -> str | None:
    """The commit of poise's own checkout, with a + where it was changed; None outside one.

    A project that poise is installed into is not asked: git would run what that one's settings name.
    """
    own = root / "pyproject.toml"
    if not (root / ".git").exists() or not own.is_file():
        return None
    safe = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    command = ["git", *safe, "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    outer["GIT_CEILING_DIRECTORIES"] = str(root.parent)
    try:
        if 'name = "poise"' not in own.read_text(encoding="utf-8", errors="replace").splitlines():
            return None
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=outer)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

"""Checkpoints: one safetensors file with everything in it, and the one before it, in case."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise import store
from poise.checks import InputError
from poise.training.run import Run

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


def save(folder: Path, run: Run) -> None:
    """Write all that moves in a run; the newest file becomes the previous one.

    Raises:
        InputError: the disk is full, or the folder cannot be written any more.
    """
    tensors = {f"model.{name}": value for name, value in run.net.state_dict().items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{name}.{index}": value for name, value in state.items() if value is not None
        }
    if run.shadow is not None:
        tensors |= {f"average.{name}": value for name, value in run.shadow.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (run.best or {}).items()}
    if run.losses:
        tensors["losses"] = torch.stack(run.losses)
    tensors = {name: value.detach().cpu() for name, value in tensors.items()}
    facts = {
        "step": run.step,
        "seconds": run.seconds,
        "rows": run.rows,
        "scaler": run.fabric.strategy.precision.state_dict(),
        "key": store.read_job(folder)["key"],
    }
    texts = {name: json.dumps(value) for name, value in facts.items()}
    file = folder / NEWEST
    with store.writing(folder):
        if file.exists():
            file.replace(folder / PREVIOUS)
        store.write_tensors(file, tensors, {**texts, "digest": content_digest(tensors, texts)})


def restore(run: Run, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put what a checkpoint holds into the run."""
    run.net.load_state_dict(_part(tensors, "model."))
    if run.shadow is not None:
        run.shadow.load_state_dict(_part(tensors, "average."))
    run.best = _part(tensors, "best.") or None
    state: dict[int, dict[str, Tensor]] = {}
    before = {
        f"momentum_buffer.{i}": value for i, value in _part(tensors, "momentum.").items()
    }  # older ones
    for name, value in {**before, **_part(tensors, "optimizer.")}.items():
        what, _, index = name.rpartition(".")
        state.setdefault(int(index), {})[what] = value
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
    if facts["scaler"]:
        run.fabric.strategy.precision.load_state_dict(facts["scaler"])
    run.step, run.seconds, run.rows = facts["step"], facts["seconds"], facts["rows"]
    if "losses" in tensors:  # of all processes together: the first one keeps them
        run.losses = list(run.fabric.to_device(tensors["losses"]) * run.fabric.is_global_zero)


def remove(folder: Path) -> None:
    """Take both files away."""
    for name in (NEWEST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def check_room(folder: Path, run: Run) -> None:
    """Refuse a folder that cannot be written, or a disk with no room for three checkpoints.

    Three: the newest, the one before, and the one being written.
    """
    moments = {"sgd": 1, "adamw": 2}[run.job.optimizer]
    copies = 1 + moments + (run.shadow is not None) + (run.job.select != "last")
    size = copies * sum(t.numel() * t.element_size() for t in run.net.state_dict().values())
    try:
        with tempfile.TemporaryFile(dir=folder):
            store.check_room(folder, 3 * size)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written: {error.strerror}") from error


def content_digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """A SHA-256 of all that a checkpoint holds: tensors with their names, types and shapes, and facts."""
    found = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What the newest whole checkpoint holds; None where there is none at all.

    One that is damaged is warned of, and removed: the next save would put it in place of the whole one.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    damaged, key = [], store.read_job(folder)["key"]
    for name in (NEWEST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            found = read(folder / name, key)
        except InputError as error:
            damaged.append(str(folder / name))
            warnings.warn(f"a checkpoint is damaged, the one before it counts: {error}", stacklevel=2)
            continue
        if damaged:
            (folder / NEWEST).unlink()
        return found
    if damaged:
        raise InputError(
            f"no whole checkpoint is left, {' and '.join(damaged)} are damaged: remove them to begin anew"
        )
    return None


def read(file: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint of the job of that key holds.

    Raises:
        InputError: it is damaged, another run's, or of a version of poise that wrote less into it.
    """
    tensors, texts = store.read_tensors(file)
    told = texts.pop("digest", "")
    if told != content_digest(tensors, texts):
        raise InputError(f"{str(file)!r} does not hold what was written")
    facts = {name: json.loads(text) for name, text in texts.items()}
    if facts.get("key") != key:
        raise InputError(f"{str(file)!r} belongs to another run")
    return tensors, facts


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

"""What a finished run left, read again: its model, its images' preparation and marks."""

from __future__ import annotations

import copy
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from poise import models, store
from poise.checks import InputError
from poise.preparation import Preparation


def load(run: str | Path, *, code: str | None = None, model: nn.Module | None = None) -> nn.Module:
    """The trained model of a run folder, in evaluation mode, on the CPU.

    Args:
        run: the folder.
        code: the model's name once more, where it stands for code or for a download (FILE.py:FUNCTION,
            hf/NAME, ...): a folder that came from elsewhere starts neither by itself.
        model: the network once more, where one was given to `poise.train`; a copy gets the weights.

    Raises:
        InputError: no such run, one that has not finished, or one whose model must be named.
    """
    content, weights = read_finished(run)
    job = content["job"]
    channels, height, width = job["shape"]
    if model is not None:
        net = copy.deepcopy(model).eval()
        models.load_weights(net, weights)
    elif "net" in job:
        raise InputError(
            f"the model in {str(run)!r} was trained from a network in Python, a {job['model']}: give it "
            "again, poise.load(run, model=net)"
        )
    else:
        name = model_of(run, job, () if code is None else (code,))
        if code not in (None, name):
            raise InputError(f"the model in {str(run)!r} is {name!r} and not {code!r}: leave code away")
        net = models.load(
            name, classes=len(job["classes"]), shape=(channels, height, width), weights=weights
        )
    vars(net).update(preparation=preparation_in(content), size=(height, width))
    return models.with_names(net, job["classes"])


def preparation_in(content: Mapping[str, Any]) -> Preparation | None:
    """How a run's images were brought to their shape, by its job.json; None if they came as they are.

    Raises:
        InputError: job.json was changed to something that is no preparation.
    """
    told = dict(content.get("source", {}).get("read", {}))
    height, width = content["job"]["shape"][1:]
    if "channels" not in told:  # of images in files alone
        return None
    try:
        own = Preparation(**told).pixels
    except TypeError as error:
        raise InputError(
            f"the run's job.json is damaged: source.read is no preparation ({error})"
        ) from error
    return own if own.size or own.crop or height != width else replace(own, size=height)


def read_marks(weights: Path) -> Tensor | None:
    """Marks of the images that a run's weights were trained on, beside them; None where there are none."""
    file = weights.parent / "seen.safetensors"
    return store.read_tensors(file)[0]["images"] if file.is_file() else None


def read_finished(run: str | Path) -> tuple[dict[str, Any], Path]:
    """What job.json says of a finished training, and the file of its weights; no net is made.

    Raises:
        InputError: no such run, one that has not finished, or one that no training has left so.
    """
    folder = Path(run).expanduser()
    content = store.read_job(folder)
    job = content["job"]
    kind = job.get("kind")
    if kind != "train":
        raise InputError(f"{str(folder)!r} is no training run: its kind is {kind!r}")
    if not (folder / "model.safetensors").exists():
        raise InputError(
            f"the training in {str(folder)!r} has not finished: the same `poise train` command resumes it"
        )
    return content, store.whole(folder, "model.safetensors", content)


def model_of(run: str | Path, job: Mapping[str, Any], named: Sequence[str] = ()) -> str:
    """The name to build a run's model by: its own, or the one of `named` that is the same elsewhere.

    Raises:
        InputError: the model stands for code or for a download, and the user has not named it.
    """
    name: str = job["model"]
    again = [other for other in named if _parts(other) == _parts(name)]
    if not again and not models.stands_alone(name):
        does = "runs code" if models.is_code(name) else "may be downloaded"
        raise InputError(
            f"the model in {str(run)!r} is {name!r}, which {does}: if you trust it, name it again, "
            f"--code {shlex.quote(name)} (in Python: code={name!r})"
        )
    chosen = again[0] if again else name
    if "code" in job and models.code_digest(chosen) != job["code"]:
        warnings.warn(f"the code of {chosen} has changed since the training of {str(run)!r}", stacklevel=3)
    return chosen


def _parts(name: str) -> tuple[str, str]:
    """What stays of a model's name when its files lie elsewhere: its kind, and the last of the path."""
    return "code" if models.is_code(name) else name.partition("/")[0], name.rpartition("/")[2]

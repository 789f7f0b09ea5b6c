"""What a training run is: its job, and the configuration that names its folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from poise import models, store
from poise.checks import InputError
from poise.data import ImageSet
from poise.defenses import Defense
from poise.train_job import ALWAYS_TOLD, TrainJob
from poise.training.budget import budget


def describe(job: TrainJob, data: ImageSet, defense: Defense) -> dict[str, Any]:
    """The configuration that names the run: the job, and what exactly the names stood for.

    Of the options that came later, only those that are not at their default: the key of a plain run
    stays the same from version to version. Weights count by their bytes, not by their path.
    """
    if job.eps_warmup and budget(defense) is None:
        raise InputError(
            f"eps_warmup={job.eps_warmup:g} needs a defense with a budget below 1, not {defense!r}"
        )
    options = {f.name: getattr(job, f.name) for f in fields(job)}
    chosen = {
        f.name: options[f.name]
        for f in fields(job)
        if f.name in ALWAYS_TOLD or options[f.name] != f.default
    }
    if job.weights not in (None, "pretrained"):
        file = Path(str(job.weights)).expanduser()
        if not file.is_file():
            raise InputError(f"no weights at {job.weights!r}: name a .safetensors file or a state dict")
        chosen["weights"] = store.file_hash(file)
    code = {"code": models.code_digest(job.model)} if models.is_code(job.model) else {}
    return {
        "kind": "train",
        **chosen,
        **code,
        "defense_value": repr(defense),
        "images": len(data),
        "fingerprint": data.fingerprint(),
        "classes": list(data.classes),
        "shape": list(data.shape),
    }

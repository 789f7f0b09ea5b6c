"""A run: the configuration that names it, all that a step needs, and all that a checkpoint keeps."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from poise import models, store
from poise.checks import InputError
from poise.data import ImageSet
from poise.defenses import Defense
from poise.train_job import ALWAYS_TOLD, TrainJob
from poise.training import batches, weights
from poise.training.batches import Batch
from poise.training.devices import InPrecision
from poise.training.schedule import budget
from poise.training.selection import split


@dataclass(eq=False)
class Run:
    """What stays the same in a run, then what moves from step to step."""

    job: TrainJob
    data: ImageSet
    defense: Defense
    fabric: Fabric
    net: nn.Module  # its weights train
    model: nn.Module  # what the defense sees: the net in its precision, or its head alone
    shadow: nn.Module | None  # the running average
    optimizer: Any
    batch: Batch
    train: Tensor  # indices of the images to train on
    validation: Tensor
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)  # of the steps of this epoch
    seconds: float = 0.0  # spent on them
    rows: list[dict[str, Any]] = field(default_factory=list)  # one an epoch
    best: dict[str, Tensor] | None = None  # weights of the best epoch so far

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return -(-len(self.train) // self.job.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.job.epochs * self.per_epoch

    @property
    def candidate(self) -> nn.Module:
        """The net that would be the model if the run ended here."""
        return self.net if self.shadow is None else self.shadow

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch in their order, which the seed and the epoch alone decide."""
        generator = torch.Generator().manual_seed(self.job.seed * 1_000_003 + epoch)
        return self.train[torch.randperm(len(self.train), generator=generator)]


def describe(
    job: TrainJob, data: ImageSet, defense: Defense, model: nn.Module | None = None
) -> dict[str, Any]:
    """The configuration that names the run: the job, and what exactly the names stood for.

    Of the options that came later, only those that are not at their default: the key of a plain run
    stays the same from version to version. Weights count by their bytes, not by their path, and a network
    that was given by its fingerprint.
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
    code = {"code": models.code_digest(job.model)} if model is None and models.is_code(job.model) else {}
    code |= {} if model is None else {"net": models.fingerprint(model)}
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


def begin(
    job: TrainJob, data: ImageSet, defense: Defense, fabric: Fabric, model: nn.Module | None = None
) -> Run:
    """The run before its first step; torch's random state is the job's from here on."""
    torch.manual_seed(job.seed)
    if model is None:
        net = models.load(
            job.model, classes=len(data.classes), shape=data.shape, weights=job.weights, new_head=True
        ).train()
    elif job.weights is not None:
        raise InputError("weights is for models by name: load them into the network that is given")
    else:
        net = copy.deepcopy(model).train()
    weights.align_head(net, data.classes)
    if job.freeze is not None:
        weights.freeze(net, job.freeze)
    net = fabric.to_device(net)
    data = data.on(fabric.device)
    if job.channels_last:
        convert_conv2d_weight_memory_format(net, torch.channels_last)
    shadow = copy.deepcopy(net).requires_grad_(False) if job.ema else None
    if job.compile:
        net.compile()
    seen = net if job.precision == "32-true" else InPrecision(net, fabric)
    optimizer = fabric.setup_optimizers(weights.optimizer_of(net, job))
    train, validation = split(data.y, job.validation, job.seed)
    batch = batches.of_images(job, data, fabric)
    if len(train) % job.batch_size == 1 or job.batch_size == 1:
        _check_single(net, data)
    found = batches.features(net, seen, data) if batches.are_features_enough(job, defense) else None
    if found is not None:
        seen, batch = models.head(net)[1], batches.of_features(found, data.y, fabric)
    return Run(job, data, defense, fabric, net, seen, shadow, optimizer, batch, train, validation)


def _check_single(net: nn.Module, data: ImageSet) -> None:
    """Refuse a last batch of one image where BatchNorm has nothing to compare it with.

    A copy of the net tries, and random numbers are given back.
    """
    x, _ = next(data.batched(1).batches(torch.arange(1)))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        try:
            copy.deepcopy(net)(x.to(next(net.parameters()).device))
        except ValueError as error:
            raise InputError(
                f"the last batch of every epoch is one image, on which the model cannot train ({error}): "
                "take another --batch-size, or one of the --images less"
            ) from error

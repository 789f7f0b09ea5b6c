"""A run in progress: all that a step needs, and all that a checkpoint keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from poise import models
from poise.checks import InputError
from poise.data import ImageSet
from poise.defenses import Defense
from poise.shapes import Labels
from poise.train_job import TrainJob
from poise.training import features, weights
from poise.training.augment import crop_flip, moves
from poise.training.distributed import InPrecision
from poise.training.selection import split

Batch: TypeAlias = Callable[[Tensor, slice, int], tuple[Tensor, Labels]]


@dataclass(eq=False)
class Run:
    """What stays the same in a run, then what moves from step to step."""

    job: TrainJob
    data: ImageSet
    defense: Defense
    folder: Path
    fabric: Fabric
    net: nn.Module  # its weights train
    model: nn.Module  # what the defense sees: the net in its precision, or its head alone
    shadow: nn.Module | None  # the running average
    optimizer: Any
    batch: Batch  # (a step's images, this process's part of them, step) -> x, y
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
    def judged(self) -> nn.Module:
        """The net that would be the model if the run ended here."""
        return self.net if self.shadow is None else self.shadow

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch in their order, which the seed and the epoch alone decide."""
        generator = torch.Generator().manual_seed(self.job.seed * 1_000_003 + epoch)
        return self.train[torch.randperm(len(self.train), generator=generator)]


def begin(job: TrainJob, data: ImageSet, defense: Defense, folder: Path, fabric: Fabric) -> Run:
    """The run before its first step; torch's random state is the job's from here on."""
    torch.manual_seed(job.seed)
    net = models.load(
        job.model, classes=len(data.classes), shape=data.shape, weights=job.weights, new_head=True
    ).train()
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
    model = net if job.precision == "32-true" else InPrecision(net, fabric)
    optimizer = fabric.setup_optimizers(weights.optimizer_of(net, job))
    train, validation = split(data.y, job.validation, job.seed)
    batch = _image_batches(job, data, fabric)
    if len(train) % job.batch_size == 1 or job.batch_size == 1:
        _check_single(net, data)
    found = features.features(net, model, data) if features.constant(job, defense) else None
    if found is not None:
        model, batch = models.head(net)[1], _feature_batches(found, data.y, fabric)
    return Run(job, data, defense, folder, fabric, net, model, shadow, optimizer, batch, train, validation)


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


def generator(job: TrainJob, step: int, *, images: bool = False) -> torch.Generator:
    """Random numbers that the seed and the step alone decide, for the defense or for the images.

    Every process and every part of a batch gets the same: what is drawn for an image by the image
    itself (`poise.draws`) then does not depend on who computes it.
    """
    number = job.seed * 1_000_000_007 + step
    return torch.Generator().manual_seed(~number if images else number)


def _image_batches(job: TrainJob, data: ImageSet, fabric: Fabric) -> Batch:
    """Images on the device, moved about if the job says so, as they would be in the whole batch."""

    def batch(chosen: Tensor, part: slice, step: int) -> tuple[Tensor, Labels]:
        x, y = fabric.to_device(next(data.batches(chosen[part])))
        if job.augment == "crop-flip":
            x = crop_flip(x, moves(len(chosen), generator(job, step, images=True)).share(part))
        return (x.contiguous(memory_format=torch.channels_last) if job.channels_last else x), y

    return batch


def _feature_batches(found: Tensor, y: Labels, fabric: Fabric) -> Batch:
    def batch(chosen: Tensor, part: slice, step: int) -> tuple[Tensor, Labels]:
        x, labels = fabric.to_device((found[chosen[part]], y[chosen[part]]))
        return x, labels

    return batch

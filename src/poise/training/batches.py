"""What a step trains on: images, moved about if the job says so, or a frozen backbone's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from poise import models
from poise.checks import check_logits
from poise.data import ImageSet
from poise.defenses import Defense, Vanilla
from poise.modes import ask, evaluating
from poise.records import Rows
from poise.shapes import Images, Labels
from poise.train_job import TrainJob

PADDING = 4
Batch: TypeAlias = Callable[
    [Tensor, slice, int], tuple[Tensor, Labels]
]  # (images, this part, step) -> x, y


def generator(job: TrainJob, step: int, *, images: bool = False) -> torch.Generator:
    """Random numbers that the seed and the step alone decide, for the defense or for the images.

    Every process and every part of a batch gets the same: what is drawn for an image by the image
    itself (`poise.draws`) then does not depend on who computes it.
    """
    number = job.seed * 1_000_000_007 + step
    return torch.Generator().manual_seed(~number if images else number)


def of_images(job: TrainJob, data: ImageSet, fabric: Fabric) -> Batch:
    """Images on the device, moved about if the job says so, as they would be in the whole batch."""

    def batch(chosen: Tensor, part: slice, step: int) -> tuple[Tensor, Labels]:
        x, y = fabric.to_device(next(data.batches(chosen[part])))
        if job.augment == "crop-flip":
            x = crop_flip(x, moves(len(chosen), generator(job, step, images=True)).share(part))
        return (x.contiguous(memory_format=torch.channels_last) if job.channels_last else x), y

    return batch


def of_features(found: Tensor, y: Labels, fabric: Fabric) -> Batch:
    """What the backbone made of them."""

    def batch(chosen: Tensor, part: slice, step: int) -> tuple[Tensor, Labels]:
        x, labels = fabric.to_device((found[chosen[part]], y[chosen[part]]))
        return x, labels

    return batch


class Moves(NamedTuple):
    """Where each image's crop begins in the padded image, and whether it is mirrored."""

    top: Int[Tensor, " n"]
    left: Int[Tensor, " n"]
    mirror: Bool[Tensor, " n"]

    def share(self, part: slice) -> Moves:
        """Those of some of the images."""
        return Moves(self.top[part], self.left[part], self.mirror[part])


def moves(n: int, generator: torch.Generator) -> Moves:
    """Moves of n images, each offset in [0, 2 * PADDING], every other image mirrored on average."""
    top, left = torch.randint(2 * PADDING + 1, (2, n), generator=generator)
    return Moves(top, left, torch.rand(n, generator=generator) < 0.5)


def crop_flip(x: Images, by: Moves) -> Images:
    """The images (n, c, h, w) padded with zeros on every side, cropped to their size and mirrored.

    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> still = Moves(torch.tensor([PADDING]), torch.tensor([PADDING]), torch.tensor([False]))
    >>> crop_flip(x, still).tolist(), crop_flip(x, still._replace(mirror=~still.mirror)).tolist()
    ([[[[1.0, 2.0]]]], [[[[2.0, 1.0]]]])
    """
    n, channels, height, width = x.shape
    top, left, mirror = (values.to(x.device)[:, None] for values in by)
    rows = top + torch.arange(height, device=x.device)
    along = torch.arange(width, device=x.device)
    columns = left + torch.where(mirror, along.flip(0), along)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    padded = F.pad(x, [PADDING] * 4)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def are_features_enough(job: TrainJob, defense: Defense) -> bool:
    """Whether the head gets the same features for an image at every epoch."""
    return job.freeze == "backbone" and job.augment == "none" and isinstance(defense, Vanilla)


@torch.no_grad()
def features(net: nn.Module, model: nn.Module, data: ImageSet) -> Float[Tensor, "n d"] | None:
    """The head's input (n, d) for every image of the data, on the CPU, in its order.

    None where the head's output is not the net's: then something comes after it.

    Args:
        net: the whole net; its last linear layer is the head.
        model: the net in the precision to compute in.
        data: the images.
    """
    head, device = models.head(net)[1], next(net.parameters()).device
    near = 1e-4 if model is net else 0.05  # the rounding of half precision
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    kept = Rows("features")
    try:
        with evaluating(net):
            for x, y in data:
                logits = ask(model, x.to(device))
                check_logits(logits, len(x), y.to(device))
                if not seen:
                    return None
                taken = seen[-1].float()
                seen.clear()
                again = head(taken)
                if again.shape != logits.shape or not torch.allclose(again, logits, rtol=near, atol=near):
                    return None
                kept.add(taken)
    finally:
        hook.remove()
    return kept.joined()

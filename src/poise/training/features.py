"""What a frozen backbone makes of every image, computed once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise import models
from poise.checks import check_logits
from poise.data import ImageSet
from poise.defenses import Defense, Vanilla
from poise.modes import ask, evaluating
from poise.rows import Rows
from poise.train_job import TrainJob


def constant(job: TrainJob, defense: Defense) -> bool:
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

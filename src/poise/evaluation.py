"""Evaluate: attack every batch, then look at the attacked images afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from poise.attacks.descent import Attack
from poise.checks import InputError, check_images, check_labels, check_logits
from poise.metrics import perturbation
from poise.modes import evaluating
from poise.records import Records
from poise.shapes import Images, Labels, Model, Probabilities


def evaluate(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
    attack: Attack,
    *,
    seed: int = 0,
    examples: int = 8,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Records:
    """What the attack does to every image, by forwards that the attack has no part in.

    The judge runs in evaluation mode, without autocast, in float32 (float64 for a float64 model),
    at another batch size than the attack's. Every batch is attacked with the same seed, and draws
    belong to images, so results do not depend on how the data is cut into batches.

    Args:
        model: images in [0, 1] -> logits, on the device that it is to run on.
        batches: (x (n, c, h, w), y (n,)) pairs.
        attack: given y if it attacks against the true label, else left to the model's prediction.
        seed: of the attack's draws.
        examples: how many images to keep in the records.
        on_batch: called with the number of images done in each batch.

    Raises:
        InputError: no images, or images, labels, logits or attacked images that cannot be right.
    """
    device, dtype = _home(model)
    parts: list[Records] = []
    for x, y in batches:
        check_images(x)
        check_labels(y, len(x))
        x, y = x.to(device, dtype), y.to(device)
        if len(x) == 0:
            continue
        clean = _judge(model, x, y)
        generator = torch.Generator().manual_seed(seed)
        labels = y if getattr(attack, "uses_labels", False) else None
        x_adv = attack(model, x.clone(), labels, generator=generator)  # it may write into its input
        check_images(x_adv, "what the attack returned")
        if x_adv.shape != x.shape:
            raise InputError(
                f"the attack returned shape {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}"
            )
        x_adv = x_adv.detach().to(dtype)
        spare = max(0, examples - sum(len(part.x) for part in parts))
        part = (
            y,
            clean,
            _judge(model, x_adv),
            perturbation.linf(x_adv, x),
            perturbation.l2(x_adv, x),
            perturbation.delta_w(x_adv, x),
            perturbation.ssim(x_adv, x),
            x[:spare],
            x_adv[:spare],
        )
        parts.append(Records(*(t.cpu().clone() for t in part)))  # views would hold the whole batch
        on_batch(len(x))
    if not parts:
        raise InputError("there are no images to evaluate: the batches are empty")
    return Records.join(parts)


def _judge(model: Model, x: Images, y: Labels | None = None) -> Probabilities:
    """The model's probabilities at x, in two forwards of half the batch each."""
    with evaluating(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        halves = torch.split(x, (len(x) + 1) // 2)
        logits = torch.cat([torch.as_tensor(model(half)) for half in halves])
    check_logits(logits, len(x), y)
    return logits.to(x.dtype).softmax(dim=1)


def _home(model: Model) -> tuple[torch.device, torch.dtype]:
    """Where the model's first parameter lies, and the precision to judge it in."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(parameters, torch.empty(0))
    if first.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the model's weights are {first.dtype}, and attacks are judged in float32: give model.float()"
        )
    return first.device, torch.float64 if first.dtype == torch.float64 else torch.float32

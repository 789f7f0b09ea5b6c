"""What every attack begins and ends with: inputs checked, models borrowed, refusals alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from poise.checks import (
    InputError,
    NotFiniteError,
    check_images,
    check_labels,
    check_logits,
)
from poise.modes import ask, call_model, evaluating
from poise.objectives import holds
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample

Walk: TypeAlias = Callable[[Any, Model, Images, Labels | None, torch.Generator | None], Images]

NO_GRADIENT = (
    "the model's output carries no gradient with respect to x: take away its no_grad, detach, integer "
    "or NumPy step, or use a black-box attack"
)


def attack_call(walk: Walk) -> Callable[..., Images]:
    """An attack's `__call__(model, x, y=None, *, generator=None)`, made of its walk from checked images.

    The walk is not begun for an empty batch or for no steps, and may keep gradients anywhere.
    """

    def call(
        self: Any,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        x, y = check_inputs(x, y)
        if len(x) == 0 or getattr(self, "steps", 1) == 0:
            return x
        with torch.inference_mode(False):
            return walk(self, model, x, y, generator)

    call.__doc__ = walk.__doc__ or "The attacked images; arguments and refusals are those of `Descent`."
    return call


def check_inputs(x: Images, y: Labels | None) -> tuple[Images, Labels | None]:
    """The images and labels, checked, as plain tensors that autograd can keep; x is in [0, 1]."""
    check_images(x)
    if y is not None:
        check_labels(y, len(x))
    with torch.inference_mode(False):
        kept = None if y is None else y.to(x.device, torch.long, copy=True)
        return x.detach().clamp(0, 1), kept


def clean_logits(model: Model, x: Images, y: Labels | None = None) -> Logits:
    """The model's logits at clean images, in evaluation mode, without a graph, checked."""
    logits = _forward(model, x)
    check_logits(logits, len(x), y)
    return wide(logits)


def look_at(model: Model, x: Images, y: Labels | None) -> tuple[Images, Logits, Labels]:
    """The images as leaves of a graph, their logits with it, checked, and y or else the prediction."""
    at = x.clone().requires_grad_()
    logits = ask(model, at)
    check_logits(logits, len(at), y)
    check_differentiable(logits)
    return at, logits, logits.argmax(dim=1) if y is None else y


def attacked_logits(model: Model, x_adv: Images) -> Logits:
    """The model's logits at attacked images; refuses NaN and infinity."""
    logits = wide(_forward(model, x_adv))
    check_finite(torch.isfinite(logits).all(dim=1))
    return logits


def label_and_top(model: Model, x_adv: Images, y: Labels, margin: float) -> tuple[Mask, PerSample]:
    """By a forward at attacked images: whether y leads its rival by the margin, and max_j p_j."""
    logits = attacked_logits(model, x_adv)
    return holds(logits, y, margin), logits.softmax(dim=1).amax(dim=1)


def wide(logits: Logits) -> Logits:
    """Half-precision logits in float32, others as they are."""
    return logits.float() if logits.dtype in (torch.half, torch.bfloat16) else logits


def check_differentiable(output: Tensor) -> None:
    """Refuse an output without a graph back to the images."""
    if not output.requires_grad:
        raise InputError(NO_GRADIENT)


def gradient_of(
    of: Tensor, at: Images, weights: Tensor | None = None, *, retain_graph: bool | None = None
) -> Images:
    """The gradient at the images; refuses an output whose graph does not go back to them."""
    (found,) = torch.autograd.grad(of, at, weights, retain_graph=retain_graph, allow_unused=True)
    if found is None:  # there is a graph, to the weights alone
        raise InputError(NO_GRADIENT)
    return found


def check_finite(finite: Mask) -> None:
    """Refuse an attack in whose course numbers ceased to be finite (one host synchronisation)."""
    lost = int((~finite).sum())
    if lost:
        raise NotFiniteError(
            f"the model's logits or gradients became NaN or infinite for {lost} of {len(finite)} "
            "images during the attack: look at its weights, or attack in float32"
        )


def _forward(model: Model, x: Images) -> Logits:
    with torch.inference_mode(False), evaluating(model), torch.no_grad():
        logits: Logits = call_model(model, x)
    return logits

"""Sharpness-aware minimisation (Foret et al. 2021), as a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from poise.checks import InputError, check_number, settle
from poise.defenses.common import forward
from poise.shapes import Images, Labels, Model, Scalar


@dataclass(frozen=True)
class SharpnessAware:
    """Mean cross-entropy of clean images at the weights w + rho·g/‖g‖₂, g its gradient at w.

    The shift is a constant to the gradient, so that of this loss in w is the method's. Two forwards
    and two backwards. BatchNorm statistics move in the first, at w itself; the second works on
    copies of the buffers. Spread over devices, each one's shift is that of its own part of the
    batch, as in the paper. Frozen weights are not shifted. In float16 (not bfloat16) g may underflow:
    no loss scaling reaches it.

    Args:
        rho: the length of the shift over all weights together.
    """

    rho: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("rho", self.rho, 0)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        if not isinstance(model, nn.Module):
            raise InputError("model must be a torch.nn.Module for sam: a function has no weights to shift")
        shifted = self.shifted(model, x, y)
        copies = {buffer: buffer.clone() for buffer in model.buffers()}
        state = by_name({**shifted, **copies}, model)
        logits = forward(lambda x: functional_call(model, state, (x,), tie_weights=False), x)
        return F.cross_entropy(logits, y)

    def shifted(self, model: nn.Module, x: Images, y: Labels) -> dict[Tensor, Tensor]:
        """Each trained weight, and what it is with its part of the shift."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if not weights:
            raise InputError("model has no weights that require a gradient, so sam has nothing to shift")
        loss = F.cross_entropy(forward(model, x), y)
        grads = torch.autograd.grad(loss, weights, materialize_grads=True)
        length = torch.stack([grad.norm() for grad in grads]).norm()
        scale = self.rho / length.clamp_min(1e-12)
        return {w: w + scale * g for w, g in zip(weights, grads, strict=True)}


def by_name(tensors: dict[Tensor, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What is to stand for the model's tensors, under one name for each place that holds one.

    `functional_call` ties by name: where a wrapper holds one module twice, as Fabric's does, it would
    put the stand-in back for good.
    """
    return {
        f"{path}.{name}".lstrip("."): tensors[tensor]
        for path, module in model.named_modules()
        for name, tensor in (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
        if tensor in tensors
    }


def sam(*, rho: float = 0.05) -> SharpnessAware:
    """Cross-entropy at the worst weights nearby: flat minima (Foret et al. 2021).

    >>> sam()
    SharpnessAware(rho=0.05)
    """
    return SharpnessAware(rho)

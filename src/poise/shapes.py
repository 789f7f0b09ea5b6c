"""Names for the tensors: what they hold and how long they are."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "n c h w"]  # pixels in [0, 1]
Logits: TypeAlias = Float[Tensor, "n k"]
Probabilities: TypeAlias = Float[Tensor, "n k"]  # rows sum to 1
Labels: TypeAlias = Int[Tensor, " n"]  # int64
PerSample: TypeAlias = Float[Tensor, " n"]
Mask: TypeAlias = Bool[Tensor, " n"]
Scalar: TypeAlias = Float[Tensor, ""]
Model: TypeAlias = Callable[[Images], Logits]  # an nn.Module, or any differentiable function


class Point(NamedTuple):
    """All that one forward and backward pass tells of a batch of images."""

    x: Images
    y: Labels  # the class that the objective speaks of
    logits: Logits
    loss: PerSample
    grad: Images | None  # of the loss in x; None where no further step needs it


def per_image(values: Tensor) -> Tensor:
    """The (n,) values as (n, 1, 1, 1), to go with images."""
    return values.reshape(-1, 1, 1, 1)


def bytes_of(values: Tensor) -> bytes:
    """The numbers as they lie in memory, one behind the other: what every digest of a tensor is of."""
    numbers: bytes = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return numbers

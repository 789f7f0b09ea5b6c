"""One number an image as the logits of two classes."""

import torch
from torch import Tensor, nn

from poise.checks import InputError
from poise.given import logits_in
from poise.shapes import Images, Logits, Model


class TwoClasses(nn.Module):
    """A model of one logit z an image as one of two classes: (-z/2, z/2), so that class 1 has σ(z).

    Args:
        model: images -> (n,) or (n, 1); or (n, k) with `column`.
        column: which of several outputs, each of which says yes or no for itself.
        sigmoid: the model returns σ(z) and not z; near 0 and 1 it has lost what z was.

    >>> TwoClasses(lambda x: x.mean(dim=(1, 2, 3)))(torch.ones(1, 1, 2, 2)).tolist()
    [[-0.5, 0.5]]
    """

    def __init__(self, model: Model, *, column: int | None = None, sigmoid: bool = False) -> None:
        super().__init__()
        self.model, self.column, self.sigmoid = model, column, sigmoid

    def forward(self, x: Images) -> Logits:
        z: Tensor = logits_in(self.model(x))
        if self.column is not None:
            z = z[:, self.column]
        if z.shape not in ((len(x),), (len(x), 1)):
            raise InputError(
                f"TwoClasses needs one number an image, got shape {tuple(z.shape)}: name a column"
            )
        z = z.reshape(-1)
        if self.sigmoid:
            tiny = torch.finfo(z.dtype).eps
            z = z.clamp(tiny, 1 - tiny).logit()
        return torch.stack([-z / 2, z / 2], dim=1)

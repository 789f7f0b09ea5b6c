"""Random crops and mirror images, drawn apart from everything else that is random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from poise.shapes import Images

PADDING = 4


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

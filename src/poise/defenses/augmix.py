"""AugMix (Hendrycks et al. 2020) on a whole batch at once, every image by draws of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.attacks.common import wide
from poise.checks import check_count, check_number, settle
from poise.draws import Draw
from poise.shapes import Images, PerSample, per_image

POINTWISE = 4  # autocontrast, equalize, posterize, solarize; then come the five warps


@dataclass(frozen=True)
class AugMix:
    """(1 − m)·x + m·Σ_i w_i·chain_i(x), w uniform on the simplex, m uniform on (0, 1), for every image.

    A chain is 1 to `depth` operations in a row, each one of autocontrast, equalize, posterize,
    solarize, rotate, shear x, shear y, translate x, translate y, of a random level up to `severity`
    of 10. (Dirichlet and Beta with parameter 1, their default.) Written here because torchvision's
    draws from the global random state and gives all images of a batch the same operations.

    Args:
        severity: the highest level, in [0.1, 10].
        width: how many chains.
        depth: the longest chain.
    """

    severity: float = 3.0
    width: int = 3
    depth: int = 3

    def __post_init__(self) -> None:
        settle(self)
        check_number("severity", self.severity, 0.1, 10)
        check_count("width", self.width, 1)
        check_count("depth", self.depth, 1)

    @torch.no_grad()
    def __call__(self, x: Images, *, generator: torch.Generator | None = None) -> Images:
        """The augmented images, in [0, 1], of the shape, dtype and device of x."""
        if len(x) == 0:
            return x.detach().clone()
        image = wide(x.detach()).clamp(0, 1)
        draw = Draw.of(x, generator)
        u = draw.uniform(image.new_empty(len(x), self.width, 2 + 3 * self.depth))
        weights = -u[:, :, 0].log()
        weights = weights / weights.sum(dim=1, keepdim=True)  # Dirichlet(1, ..., 1)
        mixed = torch.zeros_like(image)
        for chain in range(self.width):
            mixed = mixed + per_image(weights[:, chain]) * self._chain(image, u[:, chain, 1:])
        share = per_image(draw.uniform_each(image[:, 0, 0, 0]))
        return ((1 - share) * image + share * mixed).clamp(0, 1).to(x.dtype)

    def _chain(self, image: Images, u: Tensor) -> Images:
        """One chain of operations, by the numbers u (n, 1 + 3·depth) in (0, 1)."""
        length = (u[:, 0] * self.depth).long() + 1
        for place in range(self.depth):
            kind, level, side = u[:, 1 + 3 * place : 4 + 3 * place].unbind(dim=1)
            level = (0.1 + (self.severity - 0.1) * level) / 10
            changed = operation(image, (kind * 9).long(), level, torch.where(side < 0.5, -level, level))
            image = torch.where(per_image(place < length), changed, image)
        return image


def operation(image: Images, kind: Tensor, level: PerSample, signed: PerSample) -> Images:
    """Every image after the operation of its number `kind` (n,), in 0 ... 8, at its level in [0, 1]."""
    outcome = warp(image, kind - POINTWISE, signed)
    changes = (autocontrast(image), equalize(image), posterize(image, level), solarize(image, level))
    for number, changed in enumerate(changes):
        outcome = torch.where(per_image(kind == number), changed, outcome)
    return outcome


def autocontrast(image: Images) -> Images:
    """Each channel stretched to [0, 1]; a constant one stays."""
    low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    width = high - low
    return torch.where(width > 0, (image - low) / width.clamp_min(1e-12), image)


def equalize(image: Images) -> Images:
    """Each channel's histogram of 256 bins made flat, by the rule that PIL has."""
    pixels = (image * 255).round().long().flatten(2)
    counts = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = counts.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    table = (counts.cumsum(dim=2) - counts + step // 2) // step.clamp_min(1)
    flat = table.clamp(0, 255).gather(2, pixels).to(image.dtype) / 255
    return torch.where(step > 0, flat, image.flatten(2)).reshape(image.shape)


def posterize(image: Images, level: PerSample) -> Images:
    """Each pixel cut to its 4 − ⌊4·level⌋ highest of 8 bits, at least one."""
    cell = per_image(2 ** (4 + (4 * level).floor().clamp(0, 3)))
    return ((image * 255).round() / cell).floor() * cell / 255


def solarize(image: Images, level: PerSample) -> Images:
    """Pixels of 1 − level and above inverted."""
    return torch.where(image >= per_image(1 - level), 1 - image, image)


def warp(image: Images, kind: Tensor, level: PerSample) -> Images:
    """Each image turned, sheared or moved about its centre, black coming in.

    Kind 0 turns by 30°·level; 1 and 2 shear by 0.3·level along x and y; 3 and 4 move by a third of
    the image's size times the level along x and y; any other leaves the image as it is.
    """
    height, width = image.shape[2:]
    angle = torch.where(kind == 0, level * (torch.pi / 6), 0.0)
    shear = 0.3 * level
    along_x = torch.where(kind == 1, shear, -angle.sin()) * (height / width)
    along_y = torch.where(kind == 2, shear, angle.sin()) * (width / height)
    shift_x = torch.where(kind == 3, level * (2 / 3), 0.0)  # the image is 2 wide in these coordinates
    shift_y = torch.where(kind == 4, level * (2 / 3), 0.0)
    top = torch.stack([angle.cos(), along_x, shift_x], dim=1)
    bottom = torch.stack([along_y, angle.cos(), shift_y], dim=1)
    with torch.autocast(image.device.type, enabled=False):
        grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(image.shape), align_corners=False)
        moved = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return torch.where(per_image((kind >= 0) & (kind < 5)), moved, image)

"""Random numbers that do not depend on the batch: every image has a stream of its own.

A draw is a hash of (seed, image, count, pixel), so an image gets the same numbers alone as in
any batch, and nobody's random state is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from poise.shapes import Images, PerSample


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw for each image of a batch; `at(count)` is another, independent one."""

    keys: Int[Tensor, " n"]
    count: int = 0

    @classmethod
    def of(cls, x: Images, generator: torch.Generator | None = None) -> Draw:
        """The streams of these images; the generator moves on by one number, None means seed 0."""
        seed = 0
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
        bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
        weights = _mix(torch.arange(1, bits.shape[1] + 1, device=x.device)) | 1
        return cls(_mix((bits * weights).sum(dim=1) + seed))

    def at(self, count: int) -> Draw:
        """The draw of that number."""
        return replace(self, count=count)

    def uniform(self, like: Tensor) -> Tensor:
        """Independent numbers in the open interval (0, 1), of the shape and dtype of `like`."""
        width = like[0].numel() if len(like) else 0
        pixels = torch.arange(width, device=like.device) + (self.count << 32)
        z = _mix(self.keys[:, None] ^ _mix(pixels))
        bits = {torch.bfloat16: 7, torch.half: 10}.get(like.dtype, 23)  # no rounding, never 0 or 1
        top = (z >> (64 - bits)) & (2**bits - 1)
        numbers: Tensor = (2 * top + 1).to(like.dtype) * 2.0 ** (-bits - 1)
        return numbers.reshape(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        """Independent standard normal numbers, of the shape and dtype of `like`."""
        wide = torch.empty_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        normal: Tensor = torch.special.ndtri(self.uniform(wide)).to(like.dtype)
        return normal

    def uniform_each(self, like: PerSample) -> PerSample:
        """One number an image in (0, 1), apart from those of `uniform`."""
        return replace(self, keys=~self.keys).uniform(like)


def _mix(z: Tensor) -> Tensor:
    """The 64-bit finaliser of splitmix64 (Steele, Lea & Flood 2014), wrapping in int64."""
    z = (z + 0x1E3779B97F4A7C15).bitwise_xor_(_shift(z + 0x1E3779B97F4A7C15, 30))
    z = z.mul_(-0x40A7B892E31B1A47)
    z = z.bitwise_xor_(_shift(z, 27)).mul_(-0x6B2FB644ECCEEE15)
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's own drags the sign along."""
    return (z >> by) & ((1 << (64 - by)) - 1)

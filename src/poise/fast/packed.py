"""Convolutions that keep their weights in oneDNN's own blocked layout, for input gradients only.

torch reorders a convolution's weights at every forward and again at every backward. While a model is
attacked its weights stand still, so this is done once. The backward computes the gradient of the images
and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MKLDNN = torch.ops.mkldnn
DTYPES = (torch.float32, torch.bfloat16)


def packable(conv: nn.Conv2d) -> bool:
    """Whether torch has oneDNN's operators and they take this convolution."""
    known = hasattr(MKLDNN, "_reorder_convolution_weight") and hasattr(MKLDNN, "_convolution_pointwise")
    plain = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    return known and plain and type(conv) is nn.Conv2d and conv.weight.dtype in DTYPES


class PackedConv2d(nn.Module):
    """The convolution `conv`, packed for inputs of that shape (n, c, h, w); other sizes still work.

    >>> conv, x = nn.Conv2d(2, 3, 3, stride=2).eval(), torch.ones(1, 2, 8, 8)
    >>> torch.allclose(PackedConv2d(conv, x.shape)(x), conv(x), atol=1e-6)
    True
    """

    def __init__(self, conv: nn.Conv2d, shape: torch.Size) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.padding, self.stride = list(conv.padding), list(conv.stride)
        self.dilation, self.groups = list(conv.dilation), conv.groups
        self.kernel = list(conv.kernel_size)
        weight = conv.weight.detach().contiguous()
        self.bias = None if conv.bias is None else conv.bias.detach()
        with torch.no_grad():
            out = nn.functional.conv2d(
                torch.empty(shape, device="meta"),
                torch.empty(weight.shape, device="meta"),
                None,
                tuple(self.stride),
                tuple(self.padding),
                tuple(self.dilation),
                self.groups,
            )
            same = self.stride, self.dilation, self.groups
            self.ahead = MKLDNN._reorder_convolution_weight(weight, self.padding, *same, list(shape))
            spare = self.spare(shape, out.shape)
            self.back = MKLDNN._reorder_convolution_transpose_weight(
                weight, self.padding, spare, *same, list(out.shape)
            )

    def spare(self, before: torch.Size, after: torch.Size) -> list[int]:
        """The rows and columns at the far edge that the convolution's stride leaves out."""
        sides = zip(
            before[2:], after[2:], self.stride, self.padding, self.dilation, self.kernel, strict=True
        )
        return [b - ((a - 1) * s - 2 * p + d * (k - 1) + 1) for b, a, s, p, d, k in sides]

    def forward(self, x: Tensor) -> Tensor:
        convolve: Callable[[Tensor, PackedConv2d], Tensor] = _Convolve.apply
        return convolve(x, self)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: PackedConv2d) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        how: tuple[Any, ...] = conv.padding, conv.stride, conv.dilation, conv.groups, "none", [], ""
        out: Tensor = MKLDNN._convolution_pointwise(x, conv.ahead, conv.bias, *how)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        conv: PackedConv2d = ctx.conv
        spare = conv.spare(ctx.shape, grad.shape)
        how: tuple[Any, ...] = conv.padding, spare, conv.stride, conv.dilation, conv.groups, "none", [], ""
        return MKLDNN._convolution_transpose_pointwise(grad, conv.back, None, *how), None

"""Rows that come batch by batch, joined without a tensor for every batch."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.checks import InputError


class Rows:
    """Rows of the same kind, copied into one block on the CPU, which doubles when it is full.

    A tensor of its own for every batch would lie between the batch's large ones, which come and go: it
    takes a piece of a place that was freed, the next large one does not fit there any more, and the
    process grows by a batch's memory with every batch.

    >>> rows = Rows("y")
    >>> rows.add(torch.tensor([1, 2]))
    >>> rows.add(torch.tensor([3]))
    >>> rows.joined()
    tensor([1, 2, 3])
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._block: Tensor | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, part: Tensor) -> None:
        """Copy the part behind the others.

        Raises:
            InputError: its rows have another shape than those before.
        """
        if self._block is None:
            self._block = torch.empty(part.shape, dtype=part.dtype)
        if part.shape[1:] != self._block.shape[1:]:
            raise InputError(
                f"every batch must have images and logits of the same shape, got {self.name} of shape "
                f"{tuple(self._block.shape[1:])} in the first and {tuple(part.shape[1:])} in a later one"
            )
        end = self._length + len(part)
        if end > len(self._block):
            wider = self._block.new_empty((2 * end, *part.shape[1:]))
            wider[: self._length] = self._block[: self._length]
            self._block = wider
        self._block[self._length : end] = part
        self._length = end

    def joined(self) -> Tensor:
        """All rows, in order; there must have been some part."""
        assert self._block is not None
        return self._block[: self._length].clone()

"""Records: what an attack did to every image, judged afresh. All that metrics and reports read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import polars as pl
import torch
from torch import Tensor

from poise.checks import InputError
from poise.shapes import Images, Labels, Mask, PerSample, Probabilities


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


_DISTANCES = ("linf", "l2", "wasserstein", "ssim")
_BOUNDS = ("lower", "upper")


@dataclass(frozen=True, eq=False)
class Records:
    """One row an image, on the CPU; `x` and `x_adv` hold the first few images themselves.

    Attributes:
        y: true labels.
        clean, attacked: probabilities before and after, float32, from forwards of their own.
        linf, l2: max |δ| and √Σδ², in pixel units of [0, 1].
        wasserstein: ΔW = mean |δ|.
        ssim: structural similarity, 1 for no change.
        x, x_adv: the first images, clean and attacked, for pictures.
        lower, upper: bounds of the predicted class's probability over a certificate's ball, float64.
    """

    y: Labels
    clean: Probabilities
    attacked: Probabilities
    linf: PerSample
    l2: PerSample
    wasserstein: PerSample
    ssim: PerSample
    x: Images
    x_adv: Images
    lower: PerSample | None = None
    upper: PerSample | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def correct(self) -> Mask:
        """Whether the clean prediction is the true label."""
        return self.clean.argmax(dim=1) == self.y

    @property
    def kept(self) -> Mask:
        """Whether the prediction survived the attack."""
        return self.clean.argmax(dim=1) == self.attacked.argmax(dim=1)

    @property
    def certified(self) -> bool:
        """Whether there are bounds of a certificate."""
        return self.lower is not None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that there is, by the names of the attributes."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    @classmethod
    def join(cls, parts: Iterable[Records]) -> Records:
        """All rows of the parts, in order; none of the parts is kept.

        Raises:
            InputError: no parts, or parts of another shape than the first.
        """
        columns: dict[str, Rows] = {}
        for part in parts:
            given = part.tensors()
            if columns and columns.keys() != given.keys():
                raise InputError("records with a certificate's bounds and without cannot be joined")
            for name, values in given.items():
                columns.setdefault(name, Rows(name)).add(values)
        if not columns:
            raise InputError("there are no images to evaluate: the batches are empty")
        return cls(**{name: rows.joined() for name, rows in columns.items()})

    def frame(self) -> pl.DataFrame:
        """The rows as a table: labels, predictions, confidences, distances, bounds, probabilities."""
        clean_msp, clean_label = self.clean.max(dim=1)
        attacked_msp, attacked_label = self.attacked.max(dim=1)
        return pl.DataFrame(
            {
                "y": self.y.numpy(),
                "prediction": clean_label.numpy(),
                "prediction_attacked": attacked_label.numpy(),
                "confidence": clean_msp.numpy(),
                "confidence_attacked": attacked_msp.numpy(),
                **{name: getattr(self, name).numpy() for name in _DISTANCES},
                **{name: getattr(self, name).numpy() for name in _BOUNDS if self.certified},
                "clean": self.clean.numpy(),
                "attacked": self.attacked.numpy(),
            }
        )

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, x: Images, x_adv: Images) -> Records:
        """The records whose `frame()` and images these are."""

        def column(name: str) -> torch.Tensor:
            if frame[name].null_count():
                raise ValueError(f"column {name} has gaps")
            return torch.tensor(frame[name].to_numpy())

        return cls(
            column("y"),
            column("clean"),
            column("attacked"),
            column("linf"),
            column("l2"),
            column("wasserstein"),
            column("ssim"),
            x,
            x_adv,
            *(column(name) for name in _BOUNDS if name in frame.columns),
        )

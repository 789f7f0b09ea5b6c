"""Flags that several commands share: which images, of what data, on which devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

from tyro.conf import arg

from poise.cli.parsing import check_asked
from poise.preparation import AS_IT_IS, Preparation

if TYPE_CHECKING:
    from poise.data import ImageSet

T = TypeVar("T")
Flat: TypeAlias = Annotated[T, arg(name="")]  # a value's fields as flags of the command itself


@dataclass(frozen=True, kw_only=True)
class Files:
    """How many images, from where, and how they are read.

    Args:
        images: Use so many, the same share of every class; all by default.
        root: Folder of downloaded data sets.
        read: How images are brought to one shape, and which are left out; by default as a run's training
            images were, or as the model's own pipeline does.
    """

    images: int | None = None
    root: Path = Path("data")
    read: Preparation = AS_IT_IS


ALL = Files()


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a trained model is looked at on.

    Args:
        data: Data set, see `poise list`.
        split: Part of the data set.
        held_out: So many images of the split to fit scales of the logits on, a third and at most 500 by
            default; they are not attacked.
        class_map: What the data's classes are called in the model, DATA=MODEL ..., by its names or its
            numbers from 0; classes of equal names are matched by themselves.
        batch_size: Images a batch; fewer on the CPU where a batch would take more than 1 GiB.
        seed: Of the attacks' draws and of the choice of images.
        devices: Processes that share out the batches, one a GPU; all GPUs in sight by default, or what
            torchrun says.
        accelerator: auto takes GPUs where there are some.
        threads: Threads of arithmetic; by default what suits the model and batch, or OMP_NUM_THREADS.
        files: Which of them.
    """

    data: str
    split: Literal["train", "test", "val"] = "test"
    held_out: int | None = None
    class_map: tuple[str, ...] = ()
    batch_size: int = 128
    seed: int = 0
    devices: int | None = None
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    files: Flat[Files] = ALL

    def check(self, out: Path, *, steps: int | None) -> None:
        """Refuse, before any work, a folder to write into and counts that cannot be.

        Raises:
            InputError: one of them.
        """
        counts = {
            "images": self.files.images,
            "held_out": self.held_out,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "devices": self.devices,
        }
        check_asked(out, seed=self.seed, steps=steps, **counts)

    def load(self, model: str, weights: str | None = None) -> ImageSet:
        """All of the split, read as the model needs it."""
        from poise import data as sets
        from poise.auditing.fitting import preparation_for

        return sets.load(
            self.data,
            split=self.split,
            seed=self.seed,
            batch_size=self.batch_size,
            root=self.files.root,
            preparation=self.files.read.over(preparation_for(model, weights)),
        )

    def set_aside(self, images: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Those to fit scales on, and the others."""
        from poise.auditing.audit import set_aside

        return set_aside(images, self.held_out, seed=self.seed)

    def draw(self, images: ImageSet) -> ImageSet:
        """As many of them as are wanted."""
        return images.subset(self.files.images, seed=self.seed)

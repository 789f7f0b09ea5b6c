"""What a training run is: its job, and the configuration that names its folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from poise import models, store
from poise.checks import InputError, check_choice, check_count, check_number
from poise.data import ImageSet
from poise.defenses import Defense
from poise.training.budget import budget

Precision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]
Schedule: TypeAlias = Literal["cosine", "one-cycle", "constant"]
Augment: TypeAlias = Literal["none", "crop-flip"]
Select: TypeAlias = Literal["last", "accuracy", "pgd", "confsmooth"]

_ALWAYS = ("data", "model", "defense", "seed", "epochs", "lr", "momentum", "weight_decay", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that a trained model depends on; defaults are the paper's (section 4.1).

    SGD with Nesterov momentum, the learning rate falling to 0 along a cosine over all steps.

    Args:
        data: the data set's name.
        model: the model's name.
        defense: the name it goes by.
        seed: of the first weights, the order of the images and all draws.
        epochs: passes over the data.
        lr: the highest learning rate.
        momentum: Nesterov's.
        weight_decay: added to the gradient, times the weights.
        batch_size: images a step, over all devices and parts. Their number changes what is computed where a
            loss looks at a batch as a whole: with BatchNorm, and in ccat, dca, falcon, mixup, sam, uat-mix.
        precision: of the forward passes; the weights stay float32.
        channels_last: memory format of images and weights, faster on GPUs.
        compile: let torch.compile make the net's kernels.
        accumulate: parts in which each device takes its share of a step, to save memory.
        ema: decay of the average of the weights that becomes the model, in [0, 1); 0 for none.
        warmup: epochs over which the learning rate rises linearly to `lr`.
        schedule: what it does after that: fall along a cosine, stay, or rise and fall ("one-cycle").
        augment: "crop-flip" pads by 4 pixels, crops at random and mirrors every other image.
        decay_norms: whether weight decay also acts on biases and normalisation layers.
        freeze: "backbone" trains the last linear layer only; any other name freezes that submodule.
        weights: a file of weights to begin from, or "pretrained" for the published ones; a last layer
            of another width starts anew.
        eps_warmup: epochs over which the defense's budget rises linearly to its eps.
        validation: share of every class set aside from the training images.
        select: the epoch whose weights count: the last, or the best on the validation images by
            clean accuracy, by PGD accuracy, or by ConfSmooth: the mean over all images of the
            confidence under it, 0 where the clean answer is wrong.
    """

    data: str
    model: str
    defense: str
    seed: int = 0
    epochs: int = 5
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False
    accumulate: int = 1
    ema: float = 0.0
    warmup: float = 0.0
    schedule: Schedule = "cosine"
    augment: Augment = "none"
    decay_norms: bool = True
    freeze: str | None = None
    weights: str | None = None
    eps_warmup: float = 0.0
    validation: float = 0.0
    select: Select = "last"

    def __post_init__(self) -> None:
        check_count("seed", self.seed)
        check_count("epochs", self.epochs, 1)
        check_count("batch_size", self.batch_size, 1)
        check_number("lr", self.lr, 1e-12)
        check_number("momentum", self.momentum, 1e-12, 1)
        check_number("weight_decay", self.weight_decay, 0)
        check_choice("precision", self.precision, ("32-true", "bf16-mixed", "16-mixed"))
        check_count("accumulate", self.accumulate, 1, self.batch_size)
        check_number("ema", self.ema, 0, 0.999999)
        check_number("warmup", self.warmup, 0, self.epochs, hint="it is in epochs")
        check_choice("schedule", self.schedule, ("cosine", "one-cycle", "constant"))
        check_choice("augment", self.augment, ("none", "crop-flip"))
        check_number("eps_warmup", self.eps_warmup, 0, self.epochs, hint="it is in epochs")
        check_number("validation", self.validation, 0, 0.9, hint="it is a share of the images")
        check_choice("select", self.select, ("last", "accuracy", "pgd", "confsmooth"))
        if self.schedule == "one-cycle" and self.warmup:
            raise InputError("warmup must be 0 with schedule='one-cycle', which rises by itself")
        if self.select != "last" and not self.validation:
            raise InputError(
                f"select={self.select!r} needs images to select on: set a share of the training images "
                "aside, e.g. validation=0.1 (the test images are for the report)"
            )


def describe(job: TrainJob, data: ImageSet, defense: Defense) -> dict[str, Any]:
    """The configuration that names the run: the job, and what exactly the names stood for.

    Of the options that came later, only those that are not at their default: the key of a plain run
    stays the same from version to version. Weights count by their bytes, not by their path.
    """
    if job.eps_warmup and budget(defense) is None:
        raise InputError(
            f"eps_warmup={job.eps_warmup:g} needs a defense with a budget below 1, not {defense!r}"
        )
    options = {f.name: getattr(job, f.name) for f in fields(job)}
    chosen = {
        f.name: options[f.name] for f in fields(job) if f.name in _ALWAYS or options[f.name] != f.default
    }
    if job.weights not in (None, "pretrained"):
        file = Path(str(job.weights)).expanduser()
        if not file.is_file():
            raise InputError(f"no weights at {job.weights!r}: name a .safetensors file or a state dict")
        chosen["weights"] = store.file_hash(file)
    code = {"code": models.code_digest(job.model)} if models.is_code(job.model) else {}
    return {
        "kind": "train",
        **chosen,
        **code,
        "defense_value": repr(defense),
        "images": len(data),
        "fingerprint": data.fingerprint(),
        "classes": list(data.classes),
        "shape": list(data.shape),
    }

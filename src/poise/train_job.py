"""The training job: each option's default, bounds and meaning, once; no torch: flags are read fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from poise.checks import InputError, check_choice, check_count, check_number

Precision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]
Schedule: TypeAlias = Literal["cosine", "one-cycle", "constant"]
Augment: TypeAlias = Literal["none", "crop-flip"]
Select: TypeAlias = Literal["last", "accuracy", "pgd", "confsmooth"]
Optimizer: TypeAlias = Literal["sgd", "adamw"]

ALWAYS_TOLD = (  # in the configuration that names a run's folder; the options that came later, if set
    *("data", "model", "defense", "seed", "epochs", "lr", "momentum", "weight_decay", "batch_size"),
)


class Within(NamedTuple):
    """The bounds of an option; the upper one may be another option, by its name."""

    low: float
    high: float | str = math.inf
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that a trained model depends on; defaults are the paper's (section 4.1).

    SGD with Nesterov momentum by default, the learning rate falling to 0 along a cosine over all steps. The
    command line's flags, the checks and what job.json may hold are read from here.

    Args:
        data: Data set, see `poise list`.
        model: Model, see `poise list`.
        defense: Defense, see `poise list`; the name it goes by.
        seed: Of the first weights, the order of the images and all draws.
        epochs: Passes over the data.
        lr: Highest learning rate.
        momentum: Nesterov's momentum; with adamw the decay of the gradients' average, β1.
        weight_decay: Times the weights, added to the gradient; with adamw taken from the weights beside it.
        batch_size: Images a step, over all devices and parts. Their number changes what is computed where a
            loss looks at a batch as a whole: with BatchNorm, and in ccat, dca, falcon, mixup, sam, uat-mix.
        precision: Of the forward passes; the weights stay float32.
        channels_last: Memory format of images and weights, faster on GPUs.
        compile: Let torch.compile make the net's kernels.
        accumulate: Parts in which each device takes its share of a step, to save memory.
        ema: Decay of the average of the weights that becomes the model; 0 for none.
        warmup: Epochs over which the learning rate rises linearly to its highest.
        schedule: What it does after that: fall along a cosine, stay, or rise and fall (one-cycle).
        augment: crop-flip pads by 4 pixels, crops at random and mirrors every other image.
        decay_norms: Whether weight decay also acts on biases and normalisation layers.
        freeze: "backbone" trains the last linear layer only; any other name freezes that submodule.
        weights: File of weights to begin from, or "pretrained" for the published ones; a last layer of
            another width starts anew.
        eps_warmup: Epochs over which the defense's budget rises linearly to its eps.
        validation: Share of every class set aside from the training images.
        select: Epoch whose weights count: the last, or the best on the images set aside by clean accuracy,
            by PGD accuracy, or by ConfSmooth: the mean over all images of the confidence under it, 0 where
            the clean answer is wrong.
        patience: Epochs without a better one after which training ends; 0 for never.
        optimizer: sgd with Nesterov's momentum, or adamw (β2 = .999), which wants a far lower lr.
    """

    data: str
    model: str = "lenet"
    defense: str = "vanilla"
    seed: Annotated[int, Within(0)] = 0
    epochs: Annotated[int, Within(1)] = 5
    lr: Annotated[float, Within(1e-12)] = 0.1
    momentum: Annotated[float, Within(1e-12, 1)] = 0.9
    weight_decay: Annotated[float, Within(0)] = 5e-4
    batch_size: Annotated[int, Within(1)] = 128
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False
    accumulate: Annotated[int, Within(1, "batch_size")] = 1
    ema: Annotated[float, Within(0, 0.999999)] = 0.0
    warmup: Annotated[float, Within(0, "epochs", "it is in epochs")] = 0.0
    schedule: Schedule = "cosine"
    augment: Augment = "none"
    decay_norms: bool = True
    freeze: str | None = None
    weights: str | None = None
    eps_warmup: Annotated[float, Within(0, "epochs", "it is in epochs")] = 0.0
    validation: Annotated[float, Within(0, 0.9, "it is a share of the images")] = 0.0
    select: Select = "last"
    patience: Annotated[int, Within(0)] = 0
    optimizer: Optimizer = "sgd"

    def __post_init__(self) -> None:
        for name, hint in hints().items():
            _check(name, hint, vars(self))
        if self.schedule == "one-cycle" and self.warmup:
            raise InputError("warmup must be 0 with schedule='one-cycle', which rises by itself")
        if self.select != "last" and not self.validation:
            raise InputError(
                f"select={self.select!r} needs images to select on: set a share of the training images "
                "aside, e.g. validation=0.1 (the test images are for the report)"
            )
        if self.patience and self.select == "last":
            raise InputError(f"patience={self.patience} needs to know which epoch is better: give select")


@cache
def hints() -> Mapping[str, Any]:
    """The options' types, their bounds beside them."""
    return get_type_hints(TrainJob, include_extras=True)


def _check(name: str, hint: Any, values: Mapping[str, Any]) -> None:
    """Refuse a value that the option's declaration does not allow."""
    if get_origin(hint) is Literal:
        check_choice(name, values[name], get_args(hint))
    if get_origin(hint) is not Annotated:
        return
    kind, (low, high, words) = get_args(hint)
    top = values[high] if isinstance(high, str) else high
    if kind is float:
        check_number(name, values[name], low, top, hint=words)
    else:
        check_count(name, values[name], low, *([] if math.isinf(top) else [top]))

"""The models of RobustBench's leaderboards."""

from pickle import UnpicklingError

import torch
from torch import nn

from poise.checks import BROKEN, InputError
from poise.models.extras import require
from poise.models.normalize import check_answers

DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def robust_bench(
    name: str,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    pretrained: bool = True,
    new_head: bool = False,
) -> nn.Module:
    """robustbench/NAME: a model of RobustBench with its weights; needs the extra (Croce et al. 2021).

    Args:
        name: the model's identifier, for ℓ∞ and the data set of so many classes (10: CIFAR-10), or
            DATASET/THREAT/IDENTIFIER, e.g. "cifar10/L2/Standard".
        classes: how many logits.
        shape: (channels, height, width) of the images.
        pretrained: its weights always come with it.
        new_head: refused where the number of classes differs.
    """
    del pretrained, new_head
    package = require("robustbench", extra="robustbench", what=f"robustbench/{name}")
    parts = name.split("/")
    if len(parts) == 1 and classes not in DATASETS:
        raise InputError(
            f"RobustBench has no data set of {classes} classes: name it, robustbench/DATASET/THREAT/{name}"
        )
    if len(parts) not in (1, 3):
        raise InputError(f"robustbench/{name} is neither NAME nor DATASET/THREAT/NAME")
    data, threat, model_name = parts if len(parts) == 3 else (DATASETS[classes], "Linf", name)
    folder = f"{torch.hub.get_dir()}/robustbench"
    try:
        net: nn.Module = package.load_model(
            model_name=model_name, dataset=data, threat_model=threat, model_dir=folder
        )
    except (*BROKEN, ImportError, UnpicklingError) as error:
        raise InputError(f"robustbench/{name} cannot be had: {error!r}") from error
    net.eval()
    check_answers(f"robustbench/{name}", net, classes, shape)
    return net

"""torchattacks' call shape: `atk = PGD(model, eps=8/255, alpha=2/255, steps=10)`, `atk(images, labels)`.

Its own FGSM, PGD, CW, DeepFool and Square keep its argument names, order and defaults. Those of poise
keep poise's, by keyword, but the first step's size is `alpha` there too. Unlike torchattacks: images
outside [0, 1] are refused, the model and the global random state are left as they were, and random
starts come from a generator of the attack's own, which begins at `seed` and moves on with each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import Any

import torch
from torch import nn

from poise.attacks import ATTACKS, Attack
from poise.checks import InputError
from poise.compat import make, no_such_attack, run
from poise.shapes import Images, Labels, Model

SPELLED = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "CW",
    "deepfool": "DeepFool",
    "apgd": "APGD",
    "ace": "ACE",
    "confsmooth": "ConfSmooth",
    "pgd_bisect": "PGDBisect",
}
NAMES = {SPELLED.get(n) or n.title().replace("_", ""): n for n in ATTACKS}
THEIRS: Mapping[str, Mapping[str, Any]] = {  # torchattacks' arguments in order, with its defaults
    "fgsm": {"eps": 8 / 255},
    "pgd": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10, "random_start": True},
    "cw": {"c": 1, "kappa": 0, "steps": 50, "lr": 0.01},
    "deepfool": {"steps": 50, "overshoot": 0.02},
    "square": {
        "norm": "Linf",
        "eps": 8 / 255,
        "n_queries": 5000,
        "n_restarts": 1,
        "p_init": 0.8,
        "loss": "margin",
        "resc_schedule": True,
        "seed": 0,
        "verbose": False,
    },
}
OURS = {"alpha": "step", "c": "initial", "kappa": "confidence", "n_queries": "queries"}
ONLY = {"n_restarts": 1, "loss": "margin", "resc_schedule": True, "verbose": False}  # no other value
FIXED: Mapping[str, Mapping[str, Any]] = {"cw": {"binary_search": 1}}  # torchattacks tries one c


@dataclass(frozen=True, eq=False)
class Bound:
    """An attack with its model and its source of random draws.

    >>> x, y = torch.full((1, 1, 1, 2), 0.25), torch.tensor([0])
    >>> fgsm = __getattr__("FGSM")  # from poise.compat.torchattacks import FGSM
    >>> atk = fgsm(lambda x: x.flatten(1), eps=0.25)  # logits are the two pixels
    >>> atk(x, y).flatten().tolist()
    [0.0, 0.5]
    """

    model: Model
    attack: Attack
    generator: torch.Generator

    def __call__(self, images: Images, labels: Labels | None = None) -> Images:
        """The attacked images (n, c, h, w) in [0, 1], on the model's device.

        Args:
            images: in [0, 1], n of them.
            labels: the true ones (n,), for the attacks against them; the others keep the prediction.

        Raises:
            InputError: images, labels or logits that cannot be what they should be.
        """
        device = _device(self.model)
        if device is not None and isinstance(images, torch.Tensor):
            images = images.to(device)
        return run(self.attack, self.model, images, labels, generator=self.generator)


class Maker:
    """What stands for torchattacks' class of that name: called with its arguments, it gives the attack."""

    def __init__(self, name: str) -> None:
        self.ours = NAMES[name]
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"`poise.attacks.{self.ours}` in torchattacks' call shape."
        self.__signature__ = _signature(self.ours)

    def __call__(self, *args: Any, **options: Any) -> Bound:
        try:
            given = self.__signature__.bind(*args, **options)
        except TypeError as error:
            known = ", ".join(self.__signature__.parameters)
            raise InputError(f"{self.__name__}: {error}; it takes {known}") from error
        given.apply_defaults()
        values = dict(given.arguments)
        model, seed = values.pop("model"), values.pop("seed")
        for option in ONLY.keys() & values.keys():
            if values.pop(option) != ONLY[option]:
                raise InputError(
                    f"{self.__name__} knows {option}={ONLY[option]!r} only, got {options.get(option)!r}"
                )
        attack = make(self.ours, {OURS.get(option, option): value for option, value in values.items()})
        return Bound(model, attack, torch.Generator().manual_seed(seed))


def __getattr__(name: str) -> Maker:
    if name in NAMES:
        return Maker(name)
    raise no_such_attack(__name__, name, NAMES)


def __dir__() -> list[str]:
    return sorted(NAMES)


def _signature(ours: str) -> Signature:
    """model, torchattacks' arguments in their order, then the rest of ours and seed, by keyword."""
    theirs = THEIRS.get(ours, {})
    back = {new: old for old, new in OURS.items() if old in theirs or old == "alpha"}
    rest = {back.get(p.name, p.name): p.default for p in signature(ATTACKS[ours]).parameters.values()}
    rest = {**rest, **FIXED.get(ours, {}), "seed": 0}
    by_keyword = {option: value for option, value in rest.items() if option not in theirs}
    return Signature(
        [
            Parameter("model", Parameter.POSITIONAL_OR_KEYWORD),
            *(Parameter(o, Parameter.POSITIONAL_OR_KEYWORD, default=v) for o, v in theirs.items()),
            *(Parameter(o, Parameter.KEYWORD_ONLY, default=v) for o, v in by_keyword.items()),
        ]
    )


def _device(model: Model) -> torch.device | None:
    """Where the model's first parameter lies; None for a model without any."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(parameters, None)
    return None if first is None else first.device

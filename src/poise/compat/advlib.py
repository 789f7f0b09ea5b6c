"""adv-lib's call shape: `pgd(model, inputs, labels, targeted=False, eps=8/255) -> adv_inputs`.

A function for each attack of `poise.attacks.ATTACKS`, by its name there. It goes into adv-lib's
`run_attack` as it is, with its options by `functools.partial`.

>>> x, y = torch.full((1, 1, 1, 2), 0.25), torch.tensor([0])
>>> fgsm = __getattr__("fgsm")  # from poise.compat.advlib import fgsm
>>> fgsm(lambda x: x.flatten(1), x, y, eps=0.25).flatten().tolist()  # logits are the two pixels
[0.0, 0.5]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from poise.attacks import ATTACKS
from poise.compat import make, no_such_attack, refuse_targeted, run
from poise.shapes import Images, Labels, Model

NAMES = {name: name for name in ATTACKS}
OURS = {"ε": "eps"}  # adv-lib's name for the budget


def __getattr__(name: str) -> Callable[..., Images]:
    if name in NAMES:
        return _function(name)
    raise no_such_attack(__name__, name, NAMES)


def __dir__() -> list[str]:
    return sorted(NAMES)


def _function(name: str) -> Callable[..., Images]:
    def attack(
        model: Model,
        inputs: Images,
        labels: Labels | None = None,
        targeted: bool = False,
        *,
        seed: int = 0,
        **options: Any,
    ) -> Images:
        refuse_targeted(targeted)
        chosen = make(name, {OURS.get(option, option): value for option, value in options.items()})
        return run(chosen, model, inputs, labels, generator=torch.Generator().manual_seed(seed))

    attack.__name__ = attack.__qualname__ = name
    attack.__doc__ = f"""The inputs attacked by `poise.attacks.{name}`, of their shape, dtype and device.

    Args:
        model: images in [0, 1] -> logits.
        inputs: images (n, c, h, w) in [0, 1].
        labels: the true ones (n,), for an attack against them; others keep the prediction.
        targeted: False; True is refused.
        seed: of the random draws.
        options: those of the attack.

    Raises:
        InputError: targeted=True, an unknown option, or what the attack refuses.
    """
    return attack

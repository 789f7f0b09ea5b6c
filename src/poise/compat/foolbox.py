"""foolbox's call shape: `pgd(steps=10)(model, x, y, epsilons=[...]) -> (raw, clipped, success)`.

What `success` means depends on what the attack is for, judged by fresh forwards at the clipped images:

* misclassification: the label is not the given one. As in foolbox, an image that the model has wrong
  before the attack is a success.
* lower confidence (`adaptive`, `confsmooth`, `auto`, ...): the prediction is that at x, and its
  confidence is below `threshold`. An image whose confidence lies there before the attack is a success.
* higher confidence (`overconfidence`): the prediction is that at x, with confidence `threshold` or more.
* miscalibration (`max_miscalibration`, `ace`): as the second for images that the model has right, as
  the third for those that it has wrong: a right answer refused, or a wrong one let through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from poise.attacks import ATTACKS, Aim, aim_of
from poise.attacks.aim import DECLARE
from poise.attacks.common import attacked_logits, check_inputs, clean_logits
from poise.checks import InputError, check_number, settle
from poise.compat import make, no_such_attack, run
from poise.draws import Draw
from poise.shapes import Images, Labels, Logits, Mask, Model
from poise.threat import ball

NAMES = {name: name for name in ATTACKS if aim_of(ATTACKS[name]()).wants != "target"}  # has no threshold

Many: TypeAlias = tuple[list[Images], list[Images], Tensor]
One: TypeAlias = tuple[Images, Images, Tensor]


@dataclass(frozen=True, kw_only=True)
class OverBudgets:
    """An attack whose budget is named when it is called.

    Args:
        name: of the attack, in `poise.attacks.ATTACKS`, or FILE.py:NAME of what makes one of its eps.
        threshold: the confidence that success is measured by.
        seed: of the random draws, the same for every budget.
        options: of the attack, besides eps.
    """

    name: str
    threshold: float = 0.5
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self)
        check_number("threshold", self.threshold, 0, 1, hint="it is a confidence")
        if "eps" in self.options:
            raise InputError("eps must be left out here: budgets are the epsilons of the call")
        if self.aim.wants in ("target", "unknown"):
            raise InputError(
                f"{self.name} wants {self.aim.wants!r}, of which a threshold cannot tell success: take one "
                f"that declares {DECLARE}"
            )

    @property
    def aim(self) -> Aim:
        """What the attack is for."""
        return aim_of(make(self.name, self.options))

    def __call__(
        self,
        model: Model,
        inputs: Images,
        labels: Labels,
        *,
        epsilons: float | Sequence[float | None] | None,
    ) -> Many | One:
        """(raw, clipped, success): for e budgets two lists of e batches (n, c, h, w) and a mask (e, n).

        For one number, which is not a list, two batches and a mask (n,). Our attacks keep their
        budget, so the two lists are alike; but `cw` and `deepfool`, which look for the nearest point,
        run once, and raw is where they end, clipped its projection.

        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> attack = OverBudgets(name="fgsm")
        >>> _, clipped, success = attack(lambda x: x.flatten(1) - x.new_tensor([0.0, 0.3]), x, y,
        ...                              epsilons=[0.125, 0.25])  # the lead, 0.3, falls by 2 eps
        >>> [at.flatten().tolist() for at in clipped], success.tolist()
        ([[0.375, 0.625], [0.25, 0.75]], [[False], [True]])

        Args:
            model: images in [0, 1] -> logits; a foolbox.PyTorchModel with bounds (0, 1) is one.
            inputs: images in [0, 1].
            labels: the true ones (n,).
            epsilons: budgets in the attack's norm; None, for no bound, with `cw` and `deepfool` only.

        Raises:
            InputError: budgets, bounds, or what the attack refuses.
        """
        _check_bounds(model)
        inputs, known = check_inputs(inputs, labels)
        assert known is not None
        listed: Any = getattr(epsilons, "tolist", lambda: epsilons)()  # of an array or a tensor
        several = isinstance(listed, Sequence)
        budgets: Sequence[float | None] = listed if several else [listed]
        if not budgets:
            raise InputError("epsilons must hold at least one budget, got none")
        before = clean_logits(model, inputs, known)
        self._check_threshold(before.shape[1])
        raw, clipped = self._attacked(model, inputs, known, budgets)
        success = torch.stack([self._success(before, attacked_logits(model, at), known) for at in clipped])
        return (raw, clipped, success) if several else (raw[0], clipped[0], success[0])

    def _attacked(
        self, model: Model, x: Images, y: Labels, budgets: Sequence[float | None]
    ) -> tuple[list[Images], list[Images]]:
        def attack(options: Mapping[str, Any]) -> Images:
            generator = torch.Generator().manual_seed(self.seed)
            return run(make(self.name, options), model, x, y, generator=generator)

        if not self.aim.nearest:
            if None in budgets:
                raise InputError(f"epsilons must be numbers for {self.name}: it needs a budget, got None")
            raw = [attack({**self.options, "eps": eps}) for eps in budgets]
            return raw, list(raw)
        norm = self.options.get("norm", "l2")
        far = attack(self.options)
        return [far] * len(budgets), [far if e is None else _clip(far, x, norm, e) for e in budgets]

    @property
    def misclassifies(self) -> bool:
        """Whether the attack is meant to change the label."""
        return self.aim.wants == "mislabel"

    def _success(self, before: Logits, after: Logits, y: Labels) -> Mask:
        label = after.argmax(dim=1)
        if self.misclassifies:
            return label != y
        kept = label == before.argmax(dim=1)
        low = after.softmax(dim=1).amax(dim=1) < self.threshold
        if self.aim.wants == "apart":
            return kept & torch.where(before.argmax(dim=1) == y, low, ~low)
        return kept & (~low if self.aim.wants == "higher" else low)

    def _check_threshold(self, classes: int) -> None:
        least = 1 / classes
        if self.aim.wants in ("lower", "apart") and self.threshold <= least:
            raise InputError(
                f"threshold must be above {least:g} for a model of {classes} classes: the confidence of a "
                f"prediction cannot be below that, got {self.threshold:g}"
            )


def __getattr__(name: str) -> Callable[..., OverBudgets]:
    if name not in NAMES:
        raise no_such_attack(__name__, name, NAMES)

    def make(*, threshold: float = 0.5, seed: int = 0, **options: Any) -> OverBudgets:
        return OverBudgets(name=name, threshold=threshold, seed=seed, options=options)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"`poise.attacks.{name}` in foolbox's call shape; options are its own besides eps."
    return make


def __dir__() -> list[str]:
    return sorted(NAMES)


def _clip(far: Images, x: Images, norm: str, eps: float) -> Images:
    return ball(norm, eps).project(far, x, Draw.of(x))


def _check_bounds(model: Model) -> None:
    """Refuse a foolbox model whose images are not in [0, 1]."""
    bounds = getattr(model, "bounds", None)
    if isinstance(bounds, tuple) and tuple(bounds) != (0, 1):
        raise InputError(
            f"the model's bounds must be (0, 1), got {tuple(bounds)}: model.transform_bounds((0, 1))"
        )

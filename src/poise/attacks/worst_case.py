"""The worst of several attacks, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch

from poise.attacks.aim import Aim, Attack, aim_of, takes_true_labels
from poise.attacks.common import attack_call, attacked_logits, clean_logits, label_and_top
from poise.checks import InputError, check_choice, check_count, settle
from poise.objectives import MARGIN, Objective, check_margin
from poise.shapes import Images, Labels, Model, per_image
from poise.threat import Ball

Budget: TypeAlias = Literal["whole", "split"]


@dataclass(frozen=True)
class WorstCase:
    """For each image the label-keeping point of lowest confidence that any of the attacks finds.

    Every attack's points are judged by a forward of their own, and x itself takes part, so the
    result is never worse than x or than any member. It costs the members' passes and one forward
    more for each.

    Args:
        attacks: the members, each aimed at the prediction.
        margin: by how much p_y has to lead its rival at a point that counts.
    """

    attacks: tuple[Attack, ...]
    margin: float = MARGIN
    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="lower")
    uses_labels = property(takes_true_labels)

    def __post_init__(self) -> None:
        settle(self)
        if not self.attacks:
            raise InputError("worst_case needs at least one attack")
        check_margin(self.margin)

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        best, logits = x, clean_logits(model, x, y)
        y = logits.argmax(dim=1) if y is None else y
        lowest = logits.softmax(dim=1).amax(dim=1)
        generator = generator or torch.Generator().manual_seed(0)
        for attack in self.attacks:
            x_adv = attack(model, x, y, generator=generator)
            kept, top = label_and_top(model, x_adv, y, self.margin)
            better = kept & (top < lowest)
            best, lowest = torch.where(per_image(better), x_adv, best), top.where(better, lowest)
        return best


class Restartable(Attack, Protocol):
    """An attack that can begin at random points, and that minimises something."""

    @property
    def random_start(self) -> bool:
        """Whether it begins at a random point of its ball."""
        ...

    @property
    def ball(self) -> Ball:
        """Where the images may go."""
        ...

    @property
    def steps(self) -> int:
        """Gradients an image."""
        ...

    @property
    def objective(self) -> Objective:
        """What it minimises."""
        ...

    @property
    def goal(self) -> Objective | None:
        """What it is for, if that is not the objective."""
        ...


@dataclass(frozen=True)
class Restarts:
    """One attack from several random starts; each image gets its own point of lowest goal."""

    attack: Restartable
    restarts: int

    def __post_init__(self) -> None:
        settle(self)
        check_count("restarts", self.restarts, 1)
        if not self.attack.random_start:
            raise InputError("restarts need a random start (random_start=True): without, all are the same")

    uses_labels = property(takes_true_labels)

    @property
    def aim(self) -> Aim:
        """As the attack."""
        return self.attack.aim

    @property
    def steps(self) -> int:
        """As the attack."""
        return self.attack.steps

    @property
    def ball(self) -> Ball:
        """As the attack."""
        return self.attack.ball

    @attack_call
    def __call__(
        self, model: Model, x: Images, y: Labels | None, generator: torch.Generator | None
    ) -> Images:
        best, logits = x, clean_logits(model, x, y)
        y = logits.argmax(dim=1) if y is None else y
        goal = self.attack.goal or self.attack.objective
        lowest = goal(logits, y)
        generator = generator or torch.Generator().manual_seed(0)
        for _ in range(self.restarts):
            x_adv = self.attack(model, x, y, generator=generator)
            reached = goal(attacked_logits(model, x_adv), y)
            better = reached < lowest
            best, lowest = torch.where(per_image(better), x_adv, best), reached.where(better, lowest)
        return best


def worst_case(attacks: Sequence[Attack], *, margin: float = MARGIN, budget: Budget = "whole") -> WorstCase:
    """The worst of a list of attacks for each image, every label kept (ours).

    Args:
        attacks: the members, each aimed at the prediction.
        margin: by how much p_y has to lead its rival at a point that counts.
        budget: "whole" leaves every member its own steps. "split" shares out as many gradients as the
            member with the most steps would take alone: equally, what is over one each to the first
            ones. Step sizes stay as they are.

    >>> from poise.attacks import adaptive, confsmooth
    >>> [a.steps for a in worst_case([adaptive(steps=11), confsmooth(steps=8)], budget="split").attacks]
    [6, 5]
    """
    check_choice("budget", budget, ("whole", "split"))
    return WorstCase(tuple(_split(attacks) if budget == "split" else attacks), margin)


def _split(attacks: Sequence[Attack]) -> list[Attack]:
    """The attacks with `steps` that add up to the largest among them."""
    given: list[Any] = list(attacks)
    for attack in given:
        own = is_dataclass(attack) and any(field.name == "steps" for field in fields(attack))
        if not own or aim_of(attack).nearest:
            raise InputError(
                f"the budget cannot be split with {type(attack).__name__} in the list: only with attacks "
                "whose own field `steps` is the number of their gradients; leave it out, or budget='whole'"
            )
    total = max((attack.steps for attack in given), default=0)
    if total < len(given):
        raise InputError(
            f"{total} gradients are too few to split among {len(given)} attacks: give them more steps"
        )
    share, over = divmod(total, max(1, len(given)))
    return [replace(attack, steps=share + (i < over)) for i, attack in enumerate(given)]

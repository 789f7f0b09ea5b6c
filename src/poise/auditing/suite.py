"""Which attacks an audit runs, at which budgets, with how many gradients and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl
import torch
from torch import nn

from poise import attacks
from poise.attacks import Attack, run
from poise.attacks.common import check_differentiable, gradient_of
from poise.auditing.timing import passes
from poise.checks import InputError, check_number
from poise.data import ImageSet
from poise.modes import call_model, differentiable, logits_in
from poise.naming import lookup, spell

EPS = tuple(n / 255 for n in (1, 2, 4, 8))
UNDER = ("auto", "adaptive", "confsmooth")  # white box, the label kept
LEFT_OUT = (
    "The model gives no gradients, so only attacks that ask for its answers were run (random search and "
    "noise). Attacks with gradients find more: the worst case can be lower than what is shown."
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much an audit does.

    Attributes:
        images: attacked at most, each class in its share; None for all.
        steps: gradients of each attack with gradients, at each budget.
        queries: of each black-box attack, at each budget.
        tries: of random noise, at each budget.
        longer: images on which the main attack is run once more with ten times the steps.
    """

    images: int | None
    steps: int
    queries: int
    tries: int
    longer: int


SIZES: Mapping[str, Size] = {
    "quick": Size(images=200, steps=20, queries=200, tries=5, longer=20),
    "standard": Size(images=1000, steps=50, queries=1000, tries=20, longer=50),
    "thorough": Size(images=None, steps=200, queries=5000, tries=100, longer=100),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One attack at one budget; `what` says which of the evidence it makes."""

    name: str  # of the attack
    what: str  # "under", "noise", "over" or "flipped", as in `answers.Evidence`
    eps: float
    attack: Attack

    @property
    def key(self) -> str:
        """The name of its folder.

        >>> Part(name="noise", what="noise", eps=4 / 255, attack=attacks.noise()).key
        'noise@4-255'
        """
        return f"{self.name}@{spell(self.eps).replace('/', '-')}"


def suite(epsilons: Sequence[float], size: Size, *, gradients: bool = True) -> tuple[Part, ...]:
    """The attacks at each budget: those that a model without gradients allows, or all."""
    return tuple(part for eps in epsilons for part in _at(eps, size, gradients=gradients))


def _at(eps: float, size: Size, *, gradients: bool) -> list[Part]:
    steps, part = size.steps, partial(Part, eps=eps)
    search = attacks.square_underconfidence(eps=eps, queries=size.queries)
    noise = attacks.noise(eps=eps, tries=size.tries)
    found = [
        part(name="square_underconfidence", what="under", attack=search),
        part(name="noise", what="noise", attack=noise),
    ]
    if not gradients:
        over = attacks.square_overconfidence(eps=eps, queries=size.queries)
        square = attacks.square(eps=eps, queries=size.queries)
        return [
            *found,
            part(name="square_overconfidence", what="over", attack=over),
            part(name="square", what="flipped", attack=square),
        ]
    walks = {name: attacks.build(name, eps=eps, steps=steps) for name in UNDER}
    # steps that fit the ball: with the paper's 5/255 a ball of 1/255 is only ever seen from its corners
    pgd = attacks.pgd(eps=eps, steps=steps, step=2.5 * eps / max(1, steps))
    return [
        *(part(name=name, what="under", attack=attack) for name, attack in walks.items()),
        *found,
        part(name="overconfidence", what="over", attack=attacks.overconfidence(eps=eps, steps=steps)),
        part(name="pgd", what="flipped", attack=pgd),
    ]


def size_named(name: str) -> Size:
    """The size of that name.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    return lookup(SIZES, name, "size")


def budgets(eps: Sequence[float]) -> tuple[float, ...]:
    """The budgets, rising, each once.

    Raises:
        InputError: none, or one that is no number in (0, 1].
    """
    for each in eps:
        check_number("eps", each, 1e-6, 1, hint="in pixels of [0, 1], e.g. 8/255")
    if not eps:
        raise InputError("name at least one eps, e.g. --eps 1/255 4/255")
    return tuple(sorted({float(each) for each in eps}))


def gives_gradients(net: nn.Module, data: ImageSet) -> bool:
    """Whether the model's answer can be differentiated with respect to an image."""
    x, _ = next(data.batched(1).batches(torch.zeros(1, dtype=torch.int64)))
    weight = next(net.parameters(), torch.empty(0))
    try:
        with differentiable(net):
            at = x.to(weight.device, weight.dtype).requires_grad_()
            logits = logits_in(call_model(net, at))
            check_differentiable(logits)
            gradient_of(logits.sum(), at)
    except InputError:
        return False
    return True


def cost(part: Part) -> tuple[int, int]:
    """Forwards and backwards an image that the attack asks for; of random search the most there are.

    >>> cost(Part(name="auto", what="under", eps=0.1, attack=attacks.auto(steps=3)))
    (9, 3)
    """
    queries = getattr(part.attack, "queries", None)
    return passes(partial(run, part.attack)) if queries is None else (queries, 0)


def sizes_table() -> pl.DataFrame:
    """What each size does: images, and passes forward and back an image and budget, counted.

    Random search stops early where an image has reached its aim, so its forwards are the most there are.
    """
    rows = []
    for name, size in SIZES.items():
        for gradients in (True, False):
            there = back = 0
            for part in suite((0.1,), size, gradients=gradients):
                forwards, backwards = cost(part)
                there, back = there + forwards, back + backwards
            box = "white box" if gradients else "black box"
            rows.append((name, box, size.images, size.steps, size.queries, there, back))
    return pl.DataFrame(
        rows, schema=["size", "model", "images", "steps", "queries", "forwards", "backwards"], orient="row"
    )

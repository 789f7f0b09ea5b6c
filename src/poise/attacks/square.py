"""Square: random search by squares, from a model's outputs alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from poise.attacks.aim import Aim, takes_true_labels
from poise.attacks.square_moves import Moves, moves
from poise.checks import (
    InputError,
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    looks_like_probabilities,
    settle,
)
from poise.draws import Draw
from poise.modes import ask, evaluating
from poise.objectives import Wants, check_margin, holds, lead
from poise.shapes import Images, Labels, Logits, Mask, Model, PerSample, per_image
from poise.threat import Ball

Outputs: TypeAlias = Literal["logits", "probabilities"]

# After these of 10,000 queries the share of a square's area is halved (the source's table).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Goal(NamedTuple):
    """What the search wants of each image."""

    label: Labels  # the class that is to be kept, or to be lost
    want: PerSample  # the criterion's own number, e.g. a confidence to reach


class Score(NamedTuple):
    """How near to its goal each image is: better where `loss` falls and `harm` does not rise."""

    loss: PerSample
    harm: PerSample
    done: Mask  # near enough: the image is queried no more


class Criterion(Protocol):
    """What a random search is for."""

    @property
    def uses_labels(self) -> bool:
        """Whether y is the true label; otherwise it plays no part."""
        ...

    @property
    def wants(self) -> Wants:
        """Where the confidence is to go."""
        ...

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        """What is wanted of images whose logits are z."""
        ...

    def score(self, z: Logits, goal: Goal) -> Score:
        """How near logits z are to it."""
        ...


@dataclass(frozen=True)
class Misclassify:
    """Lower z_y − max_{j≠y} z_j until another class leads.

    >>> z = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    >>> score = Misclassify().score(z, Goal(torch.tensor([0, 0]), z[:, 0]))
    >>> score.loss.tolist(), score.done.tolist()
    ([2.0, -2.0], [False, True])
    """

    uses_labels: ClassVar[bool] = True
    wants: ClassVar[Wants] = "mislabel"

    def goal(self, z: Logits, y: Labels | None, draw: Draw) -> Goal:
        return Goal(z.argmax(dim=1) if y is None else y, torch.zeros_like(z[:, 0]))

    def score(self, z: Logits, goal: Goal) -> Score:
        loss = lead(z, goal.label)
        return Score(loss, loss, loss < 0)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Random search: keep a proposed image where it is better, from a model's outputs alone.

    No gradients. At most `queries` images are shown to the model for each image, the image itself
    first. One that has reached its goal is shown no more. What is returned is never worse than x.

    Args:
        criterion: what is wanted, and how near to it logits are.
        moves: where to look next, and the ball.
        queries: the most that may be spent on an image.
        p_init: the first squares' share of the image's area.
        whole: begin with the whole image changed (stripes for L∞), not with x.
        margin: the least lead of p_y over its rival at a point that is accepted; None: y may be lost.
        horizon: the queries over which the squares shrink, by default `queries`; with one horizon a
            longer search continues a shorter one.
        outputs: what the model returns, as a tensor or a NumPy array.
    """

    criterion: Criterion
    moves: Moves
    queries: int
    p_init: float
    whole: bool = False
    margin: float | None = None
    horizon: int | None = None
    outputs: Outputs = "logits"

    def __post_init__(self) -> None:
        settle(self)
        check_count("queries", self.queries)
        check_number("p_init", self.p_init, 1e-6, 1, hint="it is a share of the image's area")
        if self.margin is not None:
            check_margin(self.margin)
        if self.horizon is not None:
            check_count("horizon", self.horizon, 1)
        check_choice("outputs", self.outputs, ("logits", "probabilities"))

    uses_labels = property(takes_true_labels)

    @property
    def aim(self) -> Aim:
        """What follows from its criterion; a margin keeps the label."""
        return Aim(
            labels="true" if self.criterion.uses_labels else "prediction",
            keeps_label=self.margin is not None,
            wants=self.criterion.wants,
        )

    @property
    def ball(self) -> Ball:
        """Where the images may go."""
        return self.moves.ball

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """The attacked images; arguments and refusals are those of `Descent`."""
        return self.run(model, x, y, generator=generator)[0]

    def run(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Images, Labels]:
        """The attacked images, and how many queries (n,) were spent on each."""
        check_images(x)
        if y is not None:
            check_labels(y, len(x))
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            center = x.detach().clamp(0, 1).contiguous()
            spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if len(x) == 0 or self.queries == 0 or self.moves.ball.eps == 0:
                return center, spent
            y = None if y is None else y.to(x.device, torch.int64, copy=True)
            draw = Draw.of(center, generator)
            z = self._ask(model, center, y, first=True)
            goal = self.criterion.goal(z, y, draw)
            clean = self.criterion.score(z, goal)
            at, best = center.clone(), Score(*(value.clone() for value in clean))
            spent += 1
            for t in range(1, self.queries):
                on = (~best.done).nonzero()[:, 0]
                if len(on) == 0:
                    break
                old, mid, wanted = at[on], center[on], Goal(*(value[on] for value in goal))
                own, side, begin = Draw(draw.keys[on], t), self._side(x, t), self.whole and t == 1
                new = self.moves.start(mid, own) if begin else self.moves.propose(old, mid, side, own)
                z = self._ask(model, new)
                score = self.criterion.score(z, wanted)
                better = (score.loss < best.loss[on]) & (score.harm <= best.harm[on])
                if self.margin is not None:
                    better &= (lead(z, wanted.label) > 0) & holds(z, wanted.label, self.margin)
                better |= torch.full_like(better, begin)  # a search has to leave x to get anywhere
                at[on] = torch.where(per_image(better), new, old)
                for value, reached in zip(best, score, strict=True):
                    value[on] = torch.where(better, reached, value[on])
                spent[on] += 1
            return torch.where(per_image(best.loss <= clean.loss), at, center), spent

    def _side(self, x: Images, t: int) -> float:
        """The side of a square at query t: the source's schedule, before rounding."""
        place = (t - 1 - self.whole) / (self.horizon or self.queries) * 10000
        halved = sum(int(place) > bound for bound in HALVINGS)
        return math.sqrt(self.p_init / 2**halved * x.shape[2] * x.shape[3])

    def _ask(self, model: Model, x: Images, y: Labels | None = None, *, first: bool = False) -> Logits:
        """The logits at x; for probabilities p it is log p, which is the same up to a constant."""
        out = ask(model, x)
        if isinstance(out, np.ndarray):
            out = torch.tensor(out, device=x.device)
        if first:
            self._check(out, len(x), y)
        elif out.shape[0] != len(x) or not torch.isfinite(out).all():
            raise InputError(
                f"the model returned NaN or infinite outputs, or too few, during the attack (shape "
                f"{tuple(out.shape)} for {len(x)} images): look at its weights, or attack in float32"
            )
        z: Logits = out.detach().to(x.device)
        z = z.float() if z.dtype in (torch.half, torch.bfloat16) else z
        return z if self.outputs == "logits" else z.clamp_min(1e-30).log()

    def _check(self, out: Tensor, n: int, y: Labels | None) -> None:
        """Refuse a first answer that is not what `outputs` says."""
        sound = isinstance(out, torch.Tensor) and out.ndim == 2 and len(out) == n
        likely = sound and looks_like_probabilities(
            out, tolerance=1e-5 if self.outputs == "logits" else 1e-2
        )
        if sound and likely != (self.outputs == "probabilities") and torch.isfinite(out).all():
            found = "probabilities" if likely else "logits"
            raise InputError(
                f"the model's rows look like {found} (only probabilities are in [0, 1] with sum 1), and "
                f"outputs is {self.outputs!r}: make the attack with outputs={found!r}"
            )
        check_logits(out.clamp_min(1e-30).log() if likely else out, n, y)


def square(
    *,
    eps: float = 0.03,
    queries: int = 1000,
    p_init: float = 0.8,
    norm: str = "linf",
    outputs: Outputs = "logits",
) -> Search:
    """The black-box misclassification attack: random search by squares (Andriushchenko et al. 2020).

    >>> attack = square(eps=0.1, queries=500)
    >>> attack.queries, attack.uses_labels
    (500, True)
    """
    around = moves(norm, eps)
    return Search(
        criterion=Misclassify(), moves=around, queries=queries, p_init=p_init, whole=True, outputs=outputs
    )

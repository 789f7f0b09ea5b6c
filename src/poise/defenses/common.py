"""What defenses share: one outer forward, a generator, distances between predictions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from poise.attacks.common import wide
from poise.checks import InputError, check_count
from poise.modes import ask
from poise.shapes import Images, Labels, Logits, Model, PerSample


def forward(model: Model, x: Images) -> Logits:
    """The model's logits at x, at least float32, with their graph.

    >>> forward(lambda x: x.flatten(1).bfloat16(), torch.zeros(2, 1, 1, 3)).dtype
    torch.float32
    """
    return wide(ask(model, x))


def together(model: Model, *batches: Images) -> list[Logits]:
    """The logits of several batches, by one forward over all of them joined.

    One forward, so that BatchNorm statistics move once a training step, and so that a model which
    is spread over devices has one forward for its one backward.

    >>> x = torch.zeros(3, 1, 1, 4)
    >>> [tuple(z.shape) for z in together(lambda x: x.flatten(1), x[:2], x)]
    [(2, 4), (3, 4)]
    """
    parts = torch.split(forward(model, torch.cat(batches)), [len(batch) for batch in batches])
    return list(parts)


def source(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or where there is none, one with seed 0."""
    return generator if generator is not None else torch.Generator().manual_seed(0)


def check_walks(*attacks: object) -> None:
    """Refuse attacks without a step: what is trained on would be clean images under another name."""
    for attack in attacks:
        check_count("steps", getattr(attack, "steps", 1), 1)


def check_callable(defense: Callable[..., object], who: str) -> None:
    """Refuse what is not called as a defense is."""
    try:
        inspect.signature(defense).bind(None, None, None, None)
    except TypeError as error:
        raise InputError(
            f"{who} is no defense: it must be called as defense(model, x, y, generator) -> loss ({error})"
        ) from error


def shuffle(y: Labels, generator: torch.Generator) -> Labels:
    """A random order of a batch with these labels, as indices on their device."""
    return torch.randperm(len(y), generator=generator, device=generator.device).to(y.device)


def uniform(generator: torch.Generator) -> float:
    """A number from [0, 1)."""
    return float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))


def kl(log_p: Logits, log_q: Logits) -> PerSample:
    """KL(p‖q) = Σ_j p_j (log p_j − log q_j) of every row, from logarithms: finite where p or q underflows.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> round(kl(p.log(), q.log()).item(), 4)  # ½ log 2 + ½ log ⅔
    0.1438
    """
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def jsd(*logits: Logits) -> PerSample:
    """The Jensen-Shannon divergence of every row's m predictions: the mean of KL(p_i‖M), M their mean.

    It lies in [0, log m].

    >>> a, b = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    >>> round(jsd(a, b).item(), 4)  # log 2
    0.6931
    """
    logs = torch.stack([z.log_softmax(dim=1) for z in logits])
    mean = logs.logsumexp(dim=0) - math.log(len(logits))
    return torch.stack([kl(log_p, mean) for log_p in logs]).mean(dim=0)

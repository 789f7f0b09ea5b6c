"""How the paper is read where it is silent: `ours`, what its numbers point to, what it cites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from poise import attacks
from poise.attacks import Attack, Descent
from poise.draws import Draw
from poise.fast import accelerated
from poise.paper.suites import Setting
from poise.shapes import Images
from poise.threat import Ball, Linf, Masked, Within


@dataclass(frozen=True)
class Reading:
    """One way to read the paper.

    Args:
        name: as pages and cells have it.
        text: what is read how.
        dropout, caat: the attack and the defense that are so.
        keep: the iterate that step-back attacks return; their own default for None.
    """

    name: str
    text: str
    dropout: str
    caat: str
    keep: Literal["last"] | None = None


OURS = Reading(
    "ours",
    "every attack held to S and to [0, 1]; of step-back attacks the best iterate; Dropout of "
    "95 % of each step's change, the label kept",
    dropout="dropout",
    caat="caat",
)
PAPER = Reading(
    "paper",
    "what the published numbers point to: the last iterate; Dropout's survivors rescaled by 1/p, "
    "which leaves S; in Table 2 step-back attacks held to nothing, and no [0, 1]",
    dropout="dropout_rescaled",
    caat="caat-rescaled",
    keep="last",
)
CITED = Reading(
    "cited",
    "as `paper`, but Dropout as the cited work's code: up the true label's cross-entropy",
    dropout="dropout_cited",
    caat="caat-cited",
    keep="last",
)
READING_OF: Mapping[str, Reading] = {reading.name: reading for reading in (OURS, PAPER, CITED)}


def attacks_of(setting: Setting, reading: Reading) -> dict[str, Attack]:
    """The paper's four attacks by their names in its tables (section 4.2), in that reading."""
    sizes = {"eps": setting.eps, "step": setting.step, "steps": setting.steps}
    found = {
        "PGD": attacks.build("pgd", **sizes),
        "Dropout": attacks.build(reading.dropout, **sizes),
        "Adaptive": attacks.build("adaptive", **sizes, keep=reading.keep),
        "ConfSmooth": attacks.build("confsmooth", **sizes, keep=reading.keep),
    }
    return {name: accelerated(attack) if setting.fast else attack for name, attack in found.items()}


def unheld(setting: Setting) -> dict[str, Descent]:
    """Table 2's attacks as its numbers suggest: mean |δ| up to .0966 at S = 0.03 cannot be in a ball.

    PGD and Dropout are held to S but not to [0, 1], and the step-back attacks to neither.
    """
    held, free = Unclipped(setting.eps), Free()
    balls: dict[str, Ball] = {
        "PGD": held,
        "Dropout": Scattered(held, 0.05),
        "Adaptive": free,
        "ConfSmooth": free,
    }
    plain: Mapping[str, Any] = attacks_of(replace(setting, fast=False), PAPER)
    found = {}
    for name, ball in balls.items():
        found[name] = replace(plain[name], ball=ball)
    return found


@dataclass(frozen=True)
class Free:
    """Images may go anywhere, out of [0, 1] too.

    >>> x = torch.full((1, 1, 1, 1), 7.0)
    >>> Free().project(x, torch.zeros(1, 1, 1, 1)).item()
    7.0
    """

    def project(self, x: Images, center: Images, draw: Draw | None = None) -> Images:
        """The point itself."""
        return x

    def steepest(self, grad: Images, draw: Draw | None = None) -> Images:
        """The gradient's sign."""
        return grad.sign()

    def sample(self, center: Images, draw: Draw) -> Images:
        """The centre: there is no uniform distribution on all images."""
        return center


@dataclass(frozen=True)
class Unclipped(Linf):
    """No pixel moves by more than eps, but it may leave [0, 1].

    >>> x = torch.zeros(1, 1, 1, 1)
    >>> Unclipped(0.25).project(x - 1, x).item()
    -0.25
    """

    def held(self, center: Images) -> Within:
        """The ball round this centre alone."""
        return Within.of(self, center)


@dataclass(frozen=True)
class Scattered(Masked):
    """A share of the pixels may differ, by eps / that share, and may leave [0, 1]."""

    def project(self, x: Images, center: Images, draw: Draw) -> Images:
        """The survivors' changes divided by `keep_fraction`, as `torch.nn.functional.dropout` does."""
        mask = draw.uniform(center) < self.keep_fraction
        delta = self.ball.project(x, center, draw) - center
        return center + torch.where(mask, delta / self.keep_fraction, 0.0)

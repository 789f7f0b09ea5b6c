"""An attack with a stopwatch."""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch

from poise.attacks import Attack
from poise.fast import Fast
from poise.shapes import Images, Labels, Model


class Timed:
    """An attack that counts the seconds it takes on every device, judging and loading left out.

    A `Fast` one keeps what it prepares, apart for each model that it meets: each device has its own.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.times: list[float] = []
        self.ready: dict[Model, Attack] = {}
        self.open = ExitStack()

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *error: object) -> None:
        self.open.close()

    @property
    def notes(self) -> list[str]:
        """What was tried and left out, one sentence each."""
        notes = [note for ready in self.ready.values() for note in getattr(ready, "notes", ())]
        return list(dict.fromkeys(notes))

    @property
    def uses_labels(self) -> bool:
        """As the attack."""
        return self.attack.uses_labels

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """As the attack."""
        if model not in self.ready:
            attack = self.attack
            self.ready[model] = (
                self.open.enter_context(attack.ready()) if isinstance(attack, Fast) else attack
            )
        began = time.perf_counter()
        x_adv = self.ready[model](model, x, y, generator=generator)
        if x_adv.is_cuda:
            torch.cuda.synchronize(x_adv.device)
        self.times.append(time.perf_counter() - began)
        return x_adv

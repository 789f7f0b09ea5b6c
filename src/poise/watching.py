"""Confidence under attack during somebody else's training: a function, and a callback of Lightning's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from poise import attacks, metrics
from poise.attacks import Attack
from poise.checks import check_count, require
from poise.evaluation import evaluate
from poise.modes import pair
from poise.shapes import Images, Labels, Model

STEPS = 5  # of the attack by default: a training is watched, not audited
EPS = 8 / 255


def under_attack(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
    attack: Attack | None = None,
    *,
    images: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """What an attack does to the first images: accuracy, confidence, ECE, before and after; labels kept.

    Call it wherever a training looks at its validation images. The model is given back as it was, modes,
    gradients and random states too; the same seed gives the same numbers.

    Args:
        model: images in [0, 1] -> logits.
        batches: (x, y, ...) with x in [0, 1].
        attack: by default ConfSmooth of 5 steps within 8/255.
        images: so many of the first ones; fewer where there are fewer.
        seed: of the attack's draws.

    Raises:
        InputError: as `poise.evaluate`.
    """
    check_count("images", images, 1)
    chosen = attacks.confsmooth(eps=EPS, steps=STEPS) if attack is None else attack
    records = evaluate(model, _first(batches, images), chosen, seed=seed, examples=0)
    found = dict[str, float]()
    for name, probs in (("clean", records.clean), ("attacked", records.attacked)):
        found |= {
            f"{name}/accuracy": metrics.accuracy(probs, records.y),
            f"{name}/confidence": metrics.confidence(probs),
            f"{name}/ece": metrics.ece(probs, records.y),
        }
    return found | {"label_kept": metrics.label_kept(records.clean, records.attacked)}


def lightning_callback(
    batches: Iterable[tuple[Images, Labels]],
    attack: Attack | None = None,
    *,
    images: int = 128,
    every: int = 1,
    seed: int = 0,
) -> Any:
    """A callback for Lightning's Trainer that logs `under_attack` after every so many epochs.

    The module's forward takes images in [0, 1] and gives logits. Numbers go to the trainer's loggers and
    metrics as under_attack/... ; of several processes the first one attacks.

    Raises:
        InputError: the package lightning is missing.
    """
    lightning = require("lightning", extra="lightning", what="lightning_callback")
    check_count("every", every, 1)

    def on_train_epoch_end(callback: object, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero and (trainer.current_epoch + 1) % every == 0:
            found = under_attack(pl_module, batches, attack, images=images, seed=seed)
            told = {f"under_attack/{name}": value for name, value in found.items()}
            pl_module.log_dict(told, rank_zero_only=True)

    return type("UnderAttack", (lightning.Callback,), {"on_train_epoch_end": on_train_epoch_end})()


def _first(batches: Iterable[tuple[Images, Labels]], images: int) -> Iterator[tuple[Images, Labels]]:
    for x, y in map(pair, batches):
        yield x[:images], y[:images]
        images -= len(x)
        if images <= 0:
            return

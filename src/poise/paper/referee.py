"""One net in numbers that a change of its logits' scale cannot improve unseen."""

from __future__ import annotations

from functools import partial
from math import isnan

from torch import nn

from poise import attacks, metrics
from poise.auditing.pairs import CONFIDENCE, SCALE, fit_scales
from poise.data import ImageSet
from poise.evaluation import Devices, evaluate
from poise.recalibration import Recalibrated, Scale
from poise.report import Attacked, Audit

UNDER = ("dropout", "adaptive", "confsmooth", "auto")  # what the paper trains and judges by, and ours

# above the bound in earnest: beyond the lead that `auto` leaves a label, and half of the last digit shown
SLACK = attacks.auto().margin / 2 + 0.0005


def referee(
    net: nn.Module, test: ImageSet, held: ImageSet, *, eps: float, steps: int = 20, devices: Devices = ()
) -> dict[str, float | None]:
    """The net's numbers on test images, its scales fitted on the images held; None where there is none.

    Confidence is the mean MSP of all images in `before`, `after_ATTACK` and `after_worst` (each image's
    lowest, its label kept), as in the paper's tables. It is that of right answers under `auto` in `raw`,
    in `at_k` (of k·z, k the multiplier of least NLL; unattacked `clean_at_k`) and in `matched` (of the
    multiple at which right answers held have the audit's clean confidence). `stable` is R, the share of
    right answers that PGD does not change: an upper estimate. The worst case of right answers is at most
    `bound`, (1 + R) / 2: if a label can be flipped, a point on the way has an MSP of 1/2 or less, the model
    being a continuous map of the image (not so where it rounds, as bf16 or quantised nets do).

    Args:
        net: images in [0, 1] -> logits.
        test: the images that are attacked.
        held: other images, to fit the scales on.
        eps: the L∞ budget of every attack; PGD's steps are long enough to cross the ball.
        steps: gradients of every attack.
        devices: that share the images, see `evaluate`.
    """
    look = partial(evaluate, examples=0, devices=devices)
    pgd = attacks.pgd(eps=eps, steps=steps, step=max(5 / 255, 2.5 * eps / max(steps, 1)))
    flipped = look(net, test, pgd)
    under = {name: look(net, test, attacks.build(name, eps=eps, steps=steps)) for name in UNDER}
    clean, y, right = flipped.clean, flipped.y, flipped.correct
    worst = Audit("", {}, tuple(Attacked(name, "", 0.0, r) for name, r in under.items())).worst.records
    chosen = list(test.batches(right.nonzero()[:, 0])) if right.any() else []
    scales = fit_scales(net, held)

    def again(grounds: str) -> tuple[float, float] | tuple[None, None]:
        if grounds not in scales or not chosen:
            return None, None
        scaled = Recalibrated(net, Scale(scales[grounds]))
        records = look(scaled, chosen, attacks.auto(eps=eps, steps=steps))
        return metrics.confidence(records.clean), metrics.confidence(records.attacked)

    clean_at_k, at_k = again(SCALE)
    stable = metrics.accuracy(flipped.attacked[right], y[right])
    numbers = {
        "accuracy": metrics.accuracy(clean, y),
        "pgd_accuracy": metrics.accuracy(flipped.attacked, y),
        "ece": metrics.ece(clean, y),
        "before": metrics.confidence(clean),
        **{f"after_{name}": metrics.confidence(r.attacked) for name, r in under.items()},
        "after_worst": metrics.confidence(worst.attacked),
        "ece_after": metrics.ece(worst.attacked, y),
        "stable": stable,
        "bound": (1 + stable) / 2,
        "raw": metrics.confidence(under["auto"].attacked[right]),
        "k": scales.get(SCALE),
        "at_k": at_k,
        "clean_at_k": clean_at_k,
        "matched": again(CONFIDENCE)[1],
    }
    return {name: None if value is None or isnan(value) else value for name, value in numbers.items()}

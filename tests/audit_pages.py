"""Audits of made-up evidence, to look at their pages: no net, no attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from poise.auditing import pairs
from poise.auditing.affected import Affected, most_affected
from poise.auditing.answers import Evidence, Seen, answers, worst
from poise.auditing.outcome import Audit, Model

EPS = tuple(n / 255 for n in (1, 2, 4, 8))
NASTY = (
    "<script>alert(1)</script>",
    "n" * 200,
    "نموذج الأشعة",
    b"caf\xe9 | $x$".decode(errors="surrogateescape"),
)


def evidence(
    *, seed: int = 0, n: int = 200, classes: Sequence[str] = ("normal", "pneumonia"), loss: float = 1.5
):
    """n answers, of which some are wrong; the confidence falls with the budget, at the rate of `loss`."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    y = rng.integers(0, k, n)
    right = rng.random(n) < 0.85
    answer = np.where(right, y, (y + 1) % k)
    sure = np.where(right, rng.beta(9, 1.2, n), rng.beta(3, 2, n)) * (1 - 1 / k) + 1 / k
    fall = rng.gamma(1.5, loss, n)

    def seen(top: np.ndarray, flips: np.ndarray | None = None) -> Seen:
        probs = np.repeat(((1 - top) / (k - 1))[:, None], k, axis=1)
        probs[np.arange(n), answer if flips is None else np.where(flips, (answer + 1) % k, answer)] = top
        return Seen.of(probs, y)

    def lower(eps: float, share: float = 1.0) -> Seen:
        return seen(1 / k + 0.02 + (sure - 1 / k) * np.exp(-fall * eps * share * 4) * 0.98)

    return Evidence(
        y=y,
        classes=classes,
        clean=seen(np.maximum(sure, 1 / k + 0.03)),
        under={eps: [lower(eps)] for eps in EPS},
        noise={eps: [lower(eps, 0.04)] for eps in EPS},
        over={
            eps: [seen(1 - (1 - np.maximum(sure, 1 / k + 0.03)) * np.exp(-fall * eps * 2))] for eps in EPS
        },
        flipped={eps: [seen(sure, rng.random(n) < 4 * eps)] for eps in EPS},
    )


def model(name: str, place: int, of: Evidence, *, threshold: float, findings=()) -> Model:
    found = answers(of, threshold=threshold)
    return Model(
        name=name,
        folder=str(place),
        evidence=of,
        found=found,
        recalibrated=found,
        k=0.83,
        slack=0.01,
        findings=findings,
    )


def audit(names: Sequence[str] = ("chest-lite0",), *, threshold: float = 0.7, **options) -> Audit:
    """An audit of so many models, each weaker than the one before."""
    found = {name: evidence(seed=5, loss=1.5 * 1.5**i, **options) for i, name in enumerate(names)}
    candidates = [
        pairs.Candidate(name, {"raw": of, "at equal scale": of}, 0.01) for name, of in found.items()
    ]
    n = len(next(iter(found.values())).y)
    findings = (
        {
            "kind": "step",
            "attack": "pgd@4-255",
            "share": 0.2,
            "seen": "20.0% of the steps fail.",
            "advice": "Take <b>smaller</b> steps.",
        },
        {
            "kind": "step",
            "attack": "auto@4-255",
            "share": 0.1,
            "seen": "10.0% of the steps fail.",
            "advice": "Take <b>smaller</b> steps.",
        },
        {
            "kind": "seen",
            "attack": "",
            "share": 1.0,
            "seen": "The model was trained on these images.",
            "advice": "Use others.",
        },
    )
    return Audit(
        models=[
            model(name, i, of, threshold=threshold, findings=findings)
            for i, (name, of) in enumerate(found.items())
        ],
        pairs=pairs.all_pairs(candidates, threshold=threshold),
        threshold=threshold,
        epsilons=EPS,
        asked={
            "kind": "suite",
            "models": {name: {"model": name, "weights": "0f" * 16} for name in names},
            "data": "folder:chest",
            "images": n,
            "fingerprint": "ab" * 16,
            "eps": list(EPS),
            "size": "quick",
            "seed": 0,
            "size_of": {"images": 200, "steps": 20},
        },
        made={
            "command": "poise audit chest-lite0 --data folder:chest --eps 1/255 2/255 4/255 8/255",
            "versions": {"poise": "0.1.0", "torch": "2.11.0"},
            "commit": None,
            "device": "CPU",
            "threads": 2,
            "started": "2026-01-01T00:00:00+00:00",
        },
    )


@cache
def small() -> Audit:
    """The smallest audit: for tests that put their own numbers in."""
    return audit(n=6)


def with_pictures(
    of: Audit, *, shape: tuple[int, int, int] = (1, 28, 28), files: str = "scan_{}.png"
) -> Audit:
    """With the most affected images of each model: soft blots, changed by one size and either sign."""
    rng, models = np.random.default_rng(0), []
    for m in of.models:
        lowest, shown = worst(m.evidence, m.evidence.under)[EPS[-1]].top, []
        for place in most_affected(m.evidence, EPS[-1]):
            clean = _blots(rng, shape)
            attacked = (clean + EPS[-1] * np.sign(_blots(rng, shape) - 0.5)).clip(0, 1)
            names = [m.evidence.classes[i] for i in (m.evidence.y[place], m.evidence.clean.answer[place])]
            before, after = float(m.evidence.clean.top[place]), float(lowest[place])
            shown.append(Affected(files.format(place), *names, before, after, clean, attacked))
        models.append(replace(m, affected=shown))
    return replace(of, models=models)


def _blots(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth image in [0, 1]."""
    _, h, w = shape
    rows, columns = np.mgrid[0:h, 0:w]
    image = np.zeros(shape)
    for _ in range(6):
        x, y, size = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.08, 0.3) * w
        image += rng.uniform(0.2, 1, (shape[0], 1, 1)) * np.exp(
            -((columns - x) ** 2 + (rows - y) ** 2) / size**2
        )
    return image / image.max()

"""How often the audit's 95 % intervals hold the truth: `python benchmarks/coverage.py [--trials 1000]`.

Images are drawn from a known law again and again, each time an interval is made, and the truth is that
law's own (of two million images where it has no formula). A line a kind of interval and number of images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from poise.metrics import intervals
from poise.metrics.intervals import Number

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
LARGE = 2_000_000


def draw(rng: np.random.Generator, n: int) -> Drawn:
    """Confidences, another model's on the same images, and whether the answer is right.

    Overconfident by some .1, a sixth of the answers wrong, the models alike as two of one kind are.
    """
    truth = rng.beta(5, 1, n)
    right = rng.random(n) < truth
    top = truth ** (1 / 3)
    other = np.clip(top - 0.1 * rng.random(n), 0.1, 1.0)
    return top, other, right


def _index(right: np.ndarray) -> tuple[int, int]:
    return int(right.sum()), int((~right).sum())


KINDS: dict[str, tuple[Callable[[Drawn], Number], Callable[[Drawn], float]]] = {
    "share, Wilson": (lambda d: intervals.share(d[0] < 0.9), lambda d: float((d[0] < 0.9).mean())),
    "mean confidence": (lambda d: intervals.mean(d[0], bounds=(0, 1)), lambda d: float(d[0].mean())),
    "Brier of the top label": (
        lambda d: intervals.mean((d[0] - d[2]) ** 2, bounds=(0, 1)),
        lambda d: float(((d[0] - d[2]) ** 2).mean()),
    ),
    "NLL": (
        lambda d: intervals.mean(-np.log(np.where(d[2], d[0], 1 - d[0] + 1e-6))),
        lambda d: float(-np.log(np.where(d[2], d[0], 1 - d[0] + 1e-6)).mean()),
    ),
    "ECE": (
        lambda d: intervals.of_ece(d[0], d[2]),
        lambda d: float(intervals.ece(d[0], d[2])(np.ones(len(d[0])))),
    ),
    "AUROC": (
        lambda d: intervals.number(intervals.auroc(d[0][d[2]], d[0][~d[2]]), *_index(d[2]), bounds=(0, 1)),
        lambda d: _large_auroc(d[0], d[2]),
    ),
    "AURC": (
        lambda d: intervals.number(intervals.aurc(d[0], d[2]), len(d[0]), bounds=(0, 1)),
        lambda d: float(intervals.aurc(d[0], d[2])(np.ones(len(d[0])))),
    ),
    "difference of means, paired": (
        lambda d: intervals.mean(d[0] - d[1]),
        lambda d: float((d[0] - d[1]).mean()),
    ),
    "difference of shares of right answers, paired": (
        lambda d: intervals.number(
            intervals.difference(
                intervals.ratio(d[0] >= 0.9, d[2]), intervals.ratio(d[1] >= 0.9, d[2] & (d[0] > 0.8))
            ),
            len(d[0]),
        ),
        lambda d: float((d[0] >= 0.9)[d[2]].mean() - (d[1] >= 0.9)[d[2] & (d[0] > 0.8)].mean()),
    ),
}


def _large_auroc(top: np.ndarray, right: np.ndarray) -> float:
    wrong = np.sort(top[~right])
    return float(np.searchsorted(wrong, top[right]).mean() / len(wrong))


def coverage(kind: str, n: int, trials: int, *, seed: int = 0) -> tuple[float, float]:
    """The share of trials whose interval holds the truth, and the intervals' mean width."""
    interval, truth_of = KINDS[kind]
    truth = truth_of(draw(np.random.default_rng(10**6), LARGE))
    found = [interval(draw(np.random.default_rng((seed, n, trial)), n)) for trial in range(trials)]
    return (
        float(np.mean([f.low <= truth <= f.high for f in found])),
        float(np.mean([f.high - f.low for f in found])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--images", nargs="+", type=int, default=[100, 1000])
    given = parser.parse_args()
    chance = 1.96 * (0.0475 / given.trials) ** 0.5
    print(f"{given.trials} trials: chance alone moves a coverage by ±{chance:.3f}")
    print("| interval | images | coverage | mean width |\n|---|---:|---:|---:|")
    for kind in given.kinds:
        for n in given.images:
            hits, width = coverage(kind, n, given.trials)
            print(f"| {kind} | {n} | {hits:.3f} | {width:.4f} |", flush=True)


if __name__ == "__main__":
    main()

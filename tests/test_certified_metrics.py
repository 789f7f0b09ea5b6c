"""The worst of metrics over intervals of confidence: against brute force, integer programs, examples."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from poise import InputError, metrics
from poise.metrics import certified

EXAMPLE = (
    torch.tensor([0.6, 0.8, 0.5, 0.3]),
    torch.tensor([0.9, 0.95, 0.7, 0.99]),
    torch.tensor([True, True, False, True]),
)


def case(n, seed, *, grid=None):
    """Random intervals; with `grid`, ends on multiples of 1/grid, where edges of bins are."""
    rng = np.random.default_rng(seed)
    ends = (
        np.sort(rng.random((2, n)), axis=0)
        if grid is None
        else np.sort(rng.integers(1, grid + 1, (2, n)), 0) / grid
    )
    return torch.tensor(ends[0]), torch.tensor(ends[1]), torch.tensor(rng.random(n) < 0.6)


def choices(low, high, *, many):
    """Every combination of `many` points of each interval, its ends among them."""
    axes = [np.unique(np.linspace(a, b, many)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return [torch.tensor(v, dtype=torch.float64) for v in itertools.product(*axes)]


def as_probabilities(v, right):
    """Two classes of which the first is predicted, and the labels that make it right or wrong."""
    return torch.stack([v, 1 - v], dim=1), (~right).long()


def test_the_example_of_four_images():
    assert certified.brier(*EXAMPLE) == pytest.approx(0.295)
    assert certified.brier_of_classes(*EXAMPLE) == pytest.approx(0.740)
    assert certified.ece_bound(*EXAMPLE) == pytest.approx(0.500)
    assert certified.ece(*EXAMPLE, bins=2) == pytest.approx(0.400)
    assert certified.ece(*EXAMPLE, bins=5) == pytest.approx(0.500)
    assert certified.referral(*EXAMPLE, threshold=0.7) == pytest.approx(2 / 3)
    assert certified.nll(*EXAMPLE) == pytest.approx(-(math.log(0.6 * 0.8 * 0.3) + math.log(0.3)) / 4)
    assert certified.auroc(*EXAMPLE) == pytest.approx(1 / 3)  # .6 and .3 against .7, .8 against .7
    assert certified.aurc(*EXAMPLE) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_a_confidence_of_0_is_in_the_first_bin_and_of_equals_the_wrong_come_first():
    zero, half = torch.zeros(1), torch.tensor([0.5, 0.5])
    assert certified.ece(zero, zero, torch.tensor([True]), bins=2) == 1.0
    for right in ([True, False], [False, True]):
        assert certified.aurc(half, half, torch.tensor(right)) == 0.75


def values(v, right):
    """Every metric at one choice of confidences, by its definition."""
    r = right.double()
    pairs = [(a > b).double() + (a == b).double() / 2 for a in v[right] for b in v[~right]]
    order = sorted(range(len(v)), key=lambda i: (-float(v[i]), bool(right[i])))
    wrong = [float(~right[i]) for i in order]
    return {
        "referral": float((v[right] < 0.5).double().mean()),
        "brier": float(((v - r) ** 2).mean()),
        "nll": float(-(r * v.log() + (1 - r) * (1 - v).log()).mean()),
        "auroc": -float(torch.stack(pairs).double().mean()),
        "aurc": float(np.mean([sum(wrong[:k]) / k for k in range(1, len(v) + 1)])),
        "ece_bound": float((v - r).abs().mean()),
    }


@pytest.mark.parametrize("seed", range(6))
def test_each_is_the_worst_of_all_choices(seed):
    low, high, right = case(4, seed)
    right[:2] = torch.tensor([True, False])
    tried = [values(v, right) for v in choices(low, high, many=4)]
    found = {
        "referral": certified.referral(low, high, right, threshold=0.5),
        **{
            name: getattr(certified, name)(low, high, right)
            for name in ("brier", "nll", "aurc", "ece_bound")
        },
        "auroc": -certified.auroc(low, high, right),
    }
    for name, worst in found.items():
        assert max(t[name] for t in tried) == pytest.approx(worst, abs=1e-12), name


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("right", [True, False])
def test_the_sum_over_classes_bounds_every_distribution_and_is_reached_by_one(classes, right):
    rng = np.random.default_rng(classes)
    p = torch.tensor(rng.dirichlet(np.full(classes, 0.3), 20000))
    y = torch.full((len(p),), 0) if right else torch.full((len(p),), classes - 1)
    v = p[:, 0] if right else p.amax(dim=1)
    chosen = (p.argmax(dim=1) == y) == right
    each = (p**2).sum(dim=1) - 2 * p.gather(1, y[:, None])[:, 0] + 1
    bound = torch.tensor(
        [certified.brier_of_classes(a[None], a[None], torch.tensor([right])) for a in v[chosen][:3000]],
        dtype=torch.float64,
    )
    slack = bound - each[chosen][:3000]
    assert (slack >= -1e-12).all() and slack.min() < 1e-3
    wide = certified.brier_of_classes(v[chosen] * 0.9, v[chosen], torch.full((int(chosen.sum()),), right))
    assert wide >= float(each[chosen].mean())


def test_a_wrong_answer_below_a_half_spreads_over_several_classes():
    """Two classes at .4 and one at .2, the true one at 0: 1 + .16 + .16 + .04."""
    v = torch.tensor([0.4], dtype=torch.float64)
    assert certified.brier_of_classes(v, v, torch.tensor([False])) == pytest.approx(1.36)


def ece_by_brute_force(low, high, right, bins):
    """The supremum over ends of intervals and both sides of every edge inside them."""
    edges = np.arange(bins + 1) / bins
    axes = []
    for a, b in zip(low.tolist(), high.tolist(), strict=True):
        inner = [e + side for e in edges for side in (0.0, 1e-10) if a <= e + side <= b]
        axes.append(sorted({a, b, *inner}))
    best = 0.0
    for v in itertools.product(*axes):
        v = torch.tensor(v, dtype=torch.float64)
        in_bin = torch.bucketize(v, torch.tensor(edges[1:-1], dtype=torch.float64))
        off = torch.zeros(bins, dtype=torch.float64).index_add_(0, in_bin, v - right.double())
        best = max(best, float(off.abs().sum()) / len(v))
    return best


@pytest.mark.parametrize("grid", [None, 6])
@pytest.mark.parametrize("bins", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_exact_ece_is_what_brute_force_finds(seed, bins, grid):
    low, high, right = case(4, seed, grid=grid)
    found = certified.ece(low, high, right, bins=bins)
    assert found == pytest.approx(ece_by_brute_force(low, high, right, bins), abs=1e-8)


def ece_by_milp(low, high, right, bins):
    """max Σ_b |S_b| with a 0/1 number for each image and bin that it meets, and one for each bin's sign."""
    low, high, r = low.numpy(), high.numpy(), right.numpy().astype(float)
    edges, n = np.arange(bins + 1) / bins, len(low)
    pairs = [
        (i, b)
        for i in range(n)
        for b in range(bins)
        if low[i] <= edges[b + 1] and (high[i] > edges[b] or b == 0)
    ]
    m = len(pairs)  # columns: chosen (m), v in the bin (m), sign (bins), |S| (bins)
    total, rows, least, most = 2 * m + 2 * bins, [], [], []

    def say(entries, lo, hi):
        row = np.zeros(total)
        for column, value in entries:
            row[column] += value
        rows.append(row)
        least.append(lo)
        most.append(hi)

    for i in range(n):
        say([(k, 1) for k, (j, _) in enumerate(pairs) if j == i], 1, 1)
    for k, (i, b) in enumerate(pairs):
        say([(m + k, 1), (k, -max(low[i], edges[b]))], 0, np.inf)
        say([(m + k, 1), (k, -min(high[i], edges[b + 1]))], -np.inf, 0)
    for b in range(bins):
        gap = [entry for k, (i, c) in enumerate(pairs) if c == b for entry in ((m + k, 1), (k, -r[i]))]
        absolute, sign = 2 * m + bins + b, 2 * m + b
        say([(absolute, 1), *((c, -v) for c, v in gap), (sign, -2 * n)], -np.inf, 0)
        say([(absolute, 1), *((c, v) for c, v in gap), (sign, 2 * n)], -np.inf, 2 * n)
    kinds = np.concatenate([np.ones(m), np.zeros(m), np.ones(bins), np.zeros(bins)])
    upper = np.concatenate([np.ones(2 * m + bins), np.full(bins, n)])
    cost = np.concatenate([np.zeros(2 * m + bins), -np.ones(bins)])
    found = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), least, most),
        integrality=kinds,
        bounds=Bounds(np.zeros(total), upper),
        options={"mip_rel_gap": 0},
    )
    assert found.success
    return -found.fun / n


@pytest.mark.parametrize("seed", range(24))
def test_the_exact_ece_is_what_an_integer_program_finds(seed):
    low, high, right = case(6 + seed % 5, seed)
    bins = 2 + seed % 6
    assert certified.ece(low, high, right, bins=bins) == pytest.approx(
        ece_by_milp(low, high, right, bins), abs=1e-7
    )


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_points_give_the_plain_metrics_and_intervals_more(bins):
    rng = np.random.default_rng(0)
    v, right = torch.tensor(rng.uniform(0.5, 1, 200)), torch.tensor(rng.random(200) < 0.8)
    probs, y = as_probabilities(v, right)
    assert certified.ece(v, v, right, bins=bins) == pytest.approx(
        metrics.ece(probs, y, bins=bins), abs=1e-12
    )
    rest = torch.where(right[:, None], probs[:, 1:], 0.0)  # of a wrong answer on a third class
    worst = torch.cat([probs[:, :1], rest, 1 - v[:, None] - rest], dim=1)
    assert certified.brier_of_classes(v, v, right) == pytest.approx(metrics.brier(worst, y), abs=1e-12)
    assert certified.nll(v, v, right) == pytest.approx(metrics.nll(probs, y), abs=1e-12)
    wider = (v - 0.1).clamp_min(0.5), (v + 0.1).clamp_max(1), right
    wide = certified.ece(*wider, bins=bins)
    assert metrics.ece(probs, y, bins=bins) < wide <= certified.ece_bound(*wider)


def test_a_thousand_images_in_fifteen_bins_take_less_than_two_seconds():
    low, high, right = case(1000, 0)
    began = time.process_time()
    found = certified.ece(low, high, right)
    assert time.process_time() - began < 2
    assert 0 < found <= certified.ece_bound(low, high, right)


def test_no_images_and_what_is_no_interval():
    none = torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    assert all(
        math.isnan(getattr(certified, name)(*none))
        for name in ("brier", "nll", "auroc", "aurc", "ece", "ece_bound")
    )
    low, high, right = EXAMPLE
    for bad in [
        (high, low, right),
        (low - 1, high, right),
        (low[:2], high, right),
        (low * math.nan, high, right),
    ]:
        for metric in (certified.ece, certified.brier, certified.aurc):
            with pytest.raises(InputError, match="lower"):
                metric(*bad)
    with pytest.raises(InputError, match="bins"):
        certified.ece(*EXAMPLE, bins=21)
    with pytest.raises(InputError, match="threshold"):
        certified.referral(*EXAMPLE, threshold=2.0)

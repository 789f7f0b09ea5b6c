"""The audit's numbers against other ways to have them, and worst cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from poise import metrics
from poise.auditing.answers import Answer, Evidence, Seen, answers, frame, standing, worst
from poise.metrics import intervals

Y = np.array([0, 0, 1, 1])
CLEAN = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]  # the last is wrong


def seen(*rows: list[float]) -> Seen:
    return Seen.of(np.array(rows), Y)


def evidence() -> Evidence:
    """Two budgets: the smaller one finds more on the second image than the larger one."""
    return Evidence(
        y=Y,
        classes=("a", "b"),
        clean=seen(*CLEAN),
        under={
            0.1: [seen([0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.6, 0.4])],
            0.2: [
                seen([0.4, 0.6], [0.75, 0.25], [0.45, 0.55], [0.55, 0.45]),  # the first one flips
                seen([0.7, 0.3], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4]),
            ],
        },
        noise={0.1: [seen([0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4])]},
        over={0.1: [seen(*CLEAN[:3], [0.85, 0.15])], 0.2: [seen(*CLEAN)]},
        flipped={0.1: [seen([0.2, 0.8], *CLEAN[1:])], 0.2: [seen(*CLEAN[:2], [0.6, 0.4], [0.1, 0.9])]},
    )


def of(found: list[Answer], question: str, eps: float = 0.0, name: str = "") -> intervals.Number:
    return next(a.number for a in found if (a.question, a.eps, a.of) == (question, eps, name))


@pytest.fixture(scope="module")
def found() -> list[Answer]:
    return answers(evidence(), threshold=0.65)


def test_the_worst_case_keeps_labels_and_includes_smaller_budgets():
    at = worst(evidence(), evidence().under)
    assert at[0.0].top.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert at[0.1].top.tolist() == [0.9, 0.55, 0.7, 0.6]
    assert at[0.2].top.tolist() == [0.7, 0.55, 0.55, 0.55]  # not .6, where the answer is another


def test_overconfidence_includes_smaller_budgets():
    assert worst(evidence(), evidence().over, sign=-1)[0.2].top.tolist() == [0.9, 0.8, 0.7, 0.85]


def test_accuracy_under_attack_is_cumulative():
    at = standing(evidence())
    assert [at[eps].tolist() for eps in (0.0, 0.1, 0.2)] == [
        [True, True, True, False],
        [False, True, True, False],
        [False, True, False, False],  # an answer that becomes right was not
    ]


def test_shares_of_trusted_answers(found):
    assert (of(found, "trusted").count, of(found, "trusted").n) == (3, 4)
    assert [of(found, "trusted_kept", eps).count for eps in (0.0, 0.1, 0.2)] == [3, 2, 1]
    assert [of(found, "needless", eps).count for eps in (0.0, 0.1, 0.2)] == [0, 1, 2]
    kept = of(found, "trusted_kept_in_noise", 0.1)
    assert (kept.count, kept.n) == (2, 3)


def test_needless_referrals_by_class_count_images_and_answers(found):
    assert (of(found, "needless_by_true", 0.2, "b").count, of(found, "needless_by_true", 0.2, "b").n) == (
        1,
        2,
    )
    predicted = of(found, "needless_by_predicted", 0.2, "a")
    assert (predicted.count, predicted.n) == (1, 3)


def test_wrong_answers_pushed_above_the_threshold(found):
    assert [of(found, "missed", eps).count for eps in (0.0, 0.1, 0.2)] == [0, 1, 1]
    assert (of(found, "pushed_above", 0.1).count, of(found, "pushed_above", 0.1).n) == (1, 1)


def test_the_budget_at_which_half_is_lost_is_interpolated_and_never_extrapolated(found):
    assert of(found, "eps_lost_50").estimate == pytest.approx(0.15)  # a third at .1, two thirds at .2
    assert of(found, "eps_lost_5").estimate == 0.1  # "that or less"
    calm = answers(evidence(), threshold=0.5)
    assert of(calm, "eps_lost_5").estimate == 0.2 == of(calm, "eps_lost_5").high  # "that or more"


def test_the_bound_of_a_continuous_map(found):
    assert of(found, "stable", 0.2).estimate == pytest.approx(1 / 3)
    assert of(found, "bound", 0.2).estimate == pytest.approx(2 / 3)


def test_numbers_agree_with_the_metrics():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(200, 3)) * 3).float()
    probs, y = logits.softmax(dim=1), torch.from_numpy(rng.integers(0, 3, 200))
    of_model = Evidence(y.numpy(), "abc", Seen.of(probs, y), under={})
    got = answers(of_model, threshold=0.5)
    top, right = probs.max(dim=1).values, probs.argmax(dim=1) == y
    wanted = {name: metrics.CALIBRATION[name](probs, y) for name in metrics.CALIBRATION}
    wanted |= {name: getattr(metrics.certified, name)(top, top, right) for name in ("auroc", "aurc")}
    for name, value in wanted.items():
        assert of(got, name).estimate == pytest.approx(value, rel=1e-6), name
        assert of(got, name).low < value < of(got, name).high


def test_a_weight_of_two_is_an_image_twice():
    rng = np.random.default_rng(1)
    top, right = rng.integers(5, 10, 40) / 10, rng.random(40) < 0.7
    weights = np.bincount(rng.integers(0, 40, 40), minlength=40).astype(float)
    twice = np.repeat(np.arange(40), weights.astype(int))
    tops, rights = torch.from_numpy(top[twice]), torch.from_numpy(right[twice])
    for name in ("aurc", "auroc"):
        wanted = getattr(metrics.certified, name)(tops, tops, rights)
        if name == "aurc":
            got = intervals.aurc(top, right)(weights)
        else:
            got = intervals.auroc(top[right], top[~right])(weights[right], weights[~right])
        assert float(got) == pytest.approx(wanted)
    probs = torch.stack([tops, 1 - tops], dim=1)
    y = (~rights).long()
    assert float(intervals.ece(top, right)(weights)) == pytest.approx(metrics.ece(probs, y))


def test_equal_values_leave_room_for_those_unseen():
    number = intervals.mean([1.0] * 50, bounds=(0, 1))
    assert number.high == 1 and 0.9 < number.low < 0.95  # Wilson: 3.84 / 53.84 unseen
    assert math.isnan(intervals.mean([2.0] * 50).low)
    assert intervals.share([]).n == 0 and math.isnan(intervals.share([]).estimate)


@pytest.mark.parametrize("kind", ["mean", "share", "paired"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    rng, hits = np.random.default_rng(2), 0
    for _ in range(120):
        values = rng.beta(5, 2, 100)
        number, truth = {
            "mean": lambda v: (intervals.mean(v), 5 / 7),
            "share": lambda v: (intervals.share(v < 0.5), 7 / 64),
            "paired": lambda v: (intervals.mean(v - v**2), 5 / 7 - 30 / 56),
        }[kind](values)
        hits += number.low <= truth <= number.high
    assert 0.88 <= hits / 120 <= 0.99  # benchmarks/coverage.py has the figures


def test_the_frame_has_a_line_an_answer(found):
    table = frame("net", found)
    assert table.height == len(found)
    assert {"model", "question", "eps", "of", "estimate", "low", "high", "n", "count"} == {*table.columns}


@pytest.mark.parametrize("n", [1, 7, 200])
def test_the_interval_of_a_share_is_scipy_s_wilson(n):
    for count in {0, 1, n // 3, n}:
        found = intervals.share([True] * count + [False] * (n - count))
        expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
        assert found.low == pytest.approx(expected.low, abs=1e-12)
        assert found.high == pytest.approx(expected.high, abs=1e-12)

"""The claims on defenses at honest scales, against the cost-matched baseline and under auto."""

import polars as pl
import pytest

from claim_frames import BY_NAME, altered, frame, verdict
from poise.paper.claims_defenses import COUNTED
from poise.paper.jobs import DEFENDED, UNDERCONFIDENCE


def refereed():
    """UAT-Smooth as the leads found it: raw confidence high, gone at k_NLL."""
    k = {"UAT-Smooth": 0.27, "Vanilla": 0.5, "AT": 1.57}
    raw = {"UAT-Smooth": 0.48, "Vanilla": 0.28}
    at_k = {"UAT-Smooth": 0.3, "Vanilla": 0.2}
    cells = []
    for i, d in enumerate((*DEFENDED, "AT-5", "UAT-Smooth (unprojected)")):
        cells += [
            ((d, "before", "k"), k.get(d, 1.2 + i / 100)),
            ((d, "Auto", "raw"), raw.get(d, 0.26 + i / 1000)),
            ((d, "Auto", "at_k"), at_k.get(d, 0.35 + i / 1000)),
            ((d, "PGD", "bound"), 0.54),
        ]
    steps = [((d, "Auto", "raw"), 0.5 - abs(i - 2) / 10) for i, d in enumerate(COUNTED)]
    return frame(*cells, *steps)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uat-smooth-highest-raw", "holds"),
        ("uat-smooth-highest-at_k", "fails"),
        ("uat-smooth-highest-matched", "not run"),
        ("uat-smooth-above-at-5-raw", "holds"),
        ("uat-smooth-above-at-5-at_k", "fails"),
        ("uat-smooth-above-vanilla-at_k", "holds"),
        ("uat-smooth-above-half-raw", "fails"),
        ("others-below-half-raw", "holds"),
        ("misclassification-defenses-more-vulnerable-raw", "holds"),
        ("misclassification-defenses-more-vulnerable-at_k", "fails"),
        ("trades-most-vulnerable-raw", "fails"),
        ("confidence-peaks-at-5-steps-raw", "holds"),
        ("uat-smooth-overconfident", "holds"),
        ("uat-smooth-most-overconfident", "holds"),
        ("at-not-overconfident", "holds"),
        ("nothing-above-the-bound", "holds"),
        ("at-5-matches-at", "not run"),
    ],
)
def test_the_referee_reads_the_scale(name, expected):
    assert verdict(BY_NAME[name], refereed())[0] == expected


@pytest.mark.parametrize(("mean", "expected"), [(0.5405, "holds"), (0.5406, "fails")])
def test_a_confidence_above_the_bound_is_found(mean, expected):
    # an attack stops .00005 above the bound, and means are shown to .0005
    cells = refereed().with_columns(table=pl.lit("r"))
    found = altered(cells, "r", "LeNet", "MNIST", {("AT", "Auto", "at_k"): mean})
    assert verdict(BY_NAME["nothing-above-the-bound"], found) == (expected, "clear")


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("uat-smooth-matches-at-5-under-pgd", {("AT-5", "PGD"): 0.3, ("UAT-Smooth", "PGD"): 0.28}, "holds"),
        ("uat-smooth-matches-at-5-under-pgd", {("AT-5", "PGD"): 0.3, ("UAT-Smooth", "PGD"): 0.27}, "fails"),
        ("at-5-matches-at", {("AT-5", "PGD"): 0.3, ("AT", "PGD"): 0.31}, "holds"),
        ("at-5-matches-at", {("AT-5", "PGD"): 0.3, ("AT", "PGD"): 0.33}, "fails"),
        ("unprojected-less-accurate-clean",
         {("UAT-Smooth (unprojected)", "before"): 0.5, ("UAT-Smooth", "before"): 0.6}, "holds"),
        ("unprojected-less-accurate-clean",
         {("UAT-Smooth (unprojected)", "before"): 0.6, ("UAT-Smooth", "before"): 0.5}, "fails"),
        ("unprojected-more-accurate-under-pgd",
         {("UAT-Smooth (unprojected)", "PGD"): 0.2, ("UAT-Smooth", "PGD"): 0.1}, "holds"),
        ("unprojected-more-accurate-under-pgd",
         {("UAT-Smooth (unprojected)", "PGD"): 0.1, ("UAT-Smooth", "PGD"): 0.2}, "fails"),
        ("uat-smooth-clean-accuracy-below-at-5",
         {("UAT-Smooth", "before"): 0.5, ("AT-5", "before"): 0.6}, "holds"),
        ("uat-smooth-clean-accuracy-below-at-5",
         {("UAT-Smooth", "before"): 0.6, ("AT-5", "before"): 0.5}, "fails"),
    ],
)  # fmt: skip
def test_accuracies_against_the_referee(name, cells, expected):
    found = frame(*(((d, a, "accuracy"), mean) for (d, a), mean in cells.items()))
    assert verdict(BY_NAME[name], found)[0] == expected


@pytest.mark.parametrize(("uat", "at", "expected"), [(0.6, 0.5, "holds"), (0.5, 0.6, "fails")])
def test_stability_against_the_referee(uat, at, expected):
    cells = frame((("UAT-Smooth", "PGD", "stable"), uat), (("AT-5", "PGD", "stable"), at))
    assert verdict(BY_NAME["uat-smooth-answers-as-stable-as-at-5"], cells)[0] == expected


@pytest.mark.parametrize(("free", "held", "expected"), [(0.01, 0.1, "holds"), (0.1, 0.01, "fails")])
def test_the_attacks_gap_when_trained_out_of_the_ball(free, held, expected):
    extra = {"UAT-Smooth (unprojected)": free, "UAT-Smooth": held}
    cells = [((d, "ConfSmooth", "msp"), 0.5) for d in extra]
    cells += [((d, "Adaptive", "msp"), 0.5 + more) for d, more in extra.items()]
    assert verdict(BY_NAME["unprojected-closes-the-attacks-gap"], frame(*cells))[0] == expected


@pytest.mark.parametrize(("auto", "expected"), [(0.19, "holds"), (0.2, "fails"), (0.25, "fails")])
def test_auto_against_the_papers_attacks(auto, expected):
    """Below the lowest of the three, whichever that is; a tie is not below."""
    for lowest in UNDERCONFIDENCE:
        cells = [(("AT", a, "msp_referee"), 0.2 if a == lowest else 0.3) for a in UNDERCONFIDENCE]
        found = frame(*cells, (("AT", "Auto", "msp_referee"), auto))
        assert verdict(BY_NAME["auto-below-the-papers-attacks"], found)[0] == expected

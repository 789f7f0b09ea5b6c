"""How claims are judged, on frames whose verdicts can be worked out in the head."""

import math
from fractions import Fraction
from itertools import product

import polars as pl
import pytest

from claim_frames import A, B, C, at, claim, frame, less, verdict
from poise import InputError
from poise.paper.claims import CLAIMS, judge
from poise.paper.claims_attacks import BINARY
from poise.paper.judging import EVERY, MOST, Count, among, on_average, subjects
from poise.paper.numbers import Case, Margin, Mean, Subject, highest


@pytest.mark.parametrize(
    ("low", "high", "by", "expected"),
    [
        (0.4, 0.5, 0.0, ("holds", "clear")),
        (0.5, 0.4, 0.0, ("fails", "clear")),
        (0.5, 0.5, 0.0, ("fails", "within noise")),  # a tie is not lower
        (0.47, 0.5, 0.0, ("holds", "within noise")),  # .03 < root(.03² + .04²) = .05
        (0.5, 0.47, 0.0, ("fails", "within noise")),
        (0.449, 0.5, 0.0, ("holds", "clear")),
        (0.451, 0.5, 0.0, ("holds", "within noise")),
        (0.3, 0.4, 0.1, ("holds", "within noise")),  # by .1, whatever the floats say
        (0.3, 0.399, 0.1, ("fails", "within noise")),
        (0.52, 0.5, -0.02, ("holds", "within noise")),  # within the tolerance
        (0.521, 0.5, -0.02, ("fails", "within noise")),
    ],
)
def test_less(low, high, by, expected):
    assert verdict(claim(less(A, B, by=by)), frame((A, low, 0.03), (B, high, 0.04))) == expected


def test_one_seed_has_no_spread():
    cells = frame((A, 0.1), (B, 0.9))
    alone = cells.with_columns(n=pl.lit(1))
    assert verdict(claim(less(A, B)), cells) == ("holds", "clear")
    assert verdict(claim(less(A, B)), alone) == ("holds", "spread unknown")
    assert verdict(claim(less(B, A)), alone) == ("fails", "spread unknown")
    unknown = frame((A, 0.1, None), (B, 0.9))
    assert verdict(claim(less(A, B)), unknown) == ("holds", "spread unknown")


@pytest.mark.parametrize("mean", [None, math.nan])
def test_what_was_not_measured_is_not_run(mean):
    cells = frame((A, 0.1), (B, 0.9)).with_columns(
        mean=pl.when(pl.col("attack") == "B").then(pl.lit(mean, pl.Float64)).otherwise("mean")
    )
    row = judge([claim(less(A, B))], cells).row(0, named=True)
    assert (row["verdict"], row["clear"], row["setting"]) == ("not run", None, "")
    assert row["numbers"] == "LeNet on MNIST lacks msp[Vanilla, B]"


def test_a_claim_is_judged_over_the_settings_that_were_run():
    whole = frame((A, 0.1), (B, 0.9))
    part = frame((A, 0.9), architecture="ResNet-18")
    row = judge([claim(less(A, B))], pl.concat([whole, part])).row(0, named=True)
    assert row["verdict"] == "holds" and row["setting"] == "LeNet on MNIST"
    assert row["numbers"].startswith("1 of 1 (1 of 2 settings run); narrowest: LeNet on MNIST: ")


def test_cases_that_stand_for_themselves_are_judged_one_by_one():
    def both(net):
        return [at(net, A) < at(net, B), at(net, A) < at(net, C)]

    cells = frame((A, 0.1), (B, 0.9))
    assert verdict(claim(both), cells) == ("not run", None)
    row = judge([claim(both, separate=True)], cells).row(0, named=True)
    assert row["verdict"] == "holds" and row["numbers"].startswith("1 of 1 (1 more not run)")


@pytest.mark.parametrize(
    ("rule", "held", "run", "expected"),
    [
        (EVERY, 3, 3, True),
        (EVERY, 2, 3, False),
        (MOST, 1, 2, False),
        (MOST, 2, 3, True),
        (MOST, 50, 99, True),
        (MOST, 49, 98, False),
        (Count(at_least=Fraction(12, 15)), 12, 15, True),
        (Count(at_least=Fraction(12, 15)), 11, 15, False),
        (Count(at_least=Fraction(0), at_most=Fraction(1, 15)), 1, 15, True),
        (Count(at_least=Fraction(0), at_most=Fraction(1, 15)), 2, 15, False),
        (Count(at_least=Fraction(0), at_most=Fraction(1, 15)), 1, 3, True),
    ],
)
def test_counts(rule, held, run, expected):
    found = [Case((Margin(1.0 if i < held else -1.0, 0.0, ""),)) for i in range(run)]
    assert rule(found)[:2] == (expected, "clear")


def test_a_count_is_clear_if_the_unclear_cases_cannot_turn_it():
    sure, unsure, against = (Case((Margin(v, 0.1, ""),)) for v in (1.0, 0.05, -1.0))
    unknown = Case((Margin(0.05, None, ""),))
    assert MOST([sure, sure, unsure]).clear == "clear"
    assert EVERY([sure, sure, unsure]).clear == "within noise"
    assert EVERY([sure, sure, unknown]).clear == "spread unknown"
    assert EVERY([sure, unsure, unknown]).clear == "within noise"
    assert EVERY([against, unsure, unknown])[:2] == (False, "clear")
    both = Case((Margin(-0.05, 0.1, ""), Margin(0.05, None, "")))
    assert EVERY([both])[:2] == (False, "within noise")  # the spread that is not known plays no part


def test_a_mean_is_judged_by_the_mean():
    cells = frame((A, 0.1, 0.03), (B, 0.4, 0.04), (C, 0.0, 0.04))

    def by(b):
        return claim(lambda net: [at(net, x).exceeds(at(net, A), by=b) for x in (B, C)], rule=on_average)

    assert verdict(by(0.05), cells) == ("holds", "clear")  # (.3 − .1) / 2 − .05; noise root(2 · .05²) / 2
    assert verdict(by(0.1), cells)[0] == "holds"  # exactly
    assert verdict(by(0.11), cells)[0] == "fails"


def test_numbers_by_hand():
    a, b = Mean(0.2, 0.03, "a"), Mean(0.5, 0.04, "b")
    for found, mean, std, name in (
        (a - b, -0.3, 0.05, "a - b"),
        (abs(a - b), 0.3, 0.05, "|a - b|"),
        ((a - b).exactly(), -0.3, 0.0, "a - b"),
        (a / b, 0.4, 0.4 * math.hypot(0.03 / 0.2, 0.04 / 0.5), "a / b"),
        (a - (b - 0.5), 0.2, 0.05, "a - (b - 0.5)"),
    ):
        assert (found.mean, found.std) == pytest.approx((mean, std)) and found.name == name
    assert math.isnan((a / (b - b)).mean)
    assert (a < 0.3).holds and not (a > 0.3).holds


def test_least_and_what_is_not_there():
    net = Subject(["net"], ["data"], numbers={A: (0.2, 0.03), B: (0.5, 0.04)})
    assert net.least("BA") == Mean(0.2, 0.03, "least msp[Vanilla, B|A]")
    assert net.least("A", defenses=["Vanilla", "AT"]).lacks == ("msp[AT, A]",)
    case = net("A") < net.least("BC") - net("D")
    assert case.lacks == ("msp[Vanilla, C]", "msp[Vanilla, D]") and not case.run


def test_comparisons_are_not_chained():
    """Python would drop the first of them."""
    a, b = Mean(0.2), Mean(0.5)
    with pytest.raises(TypeError, match="join comparisons by &"):
        _ = a < b < 0.7
    with pytest.raises(TypeError, match="join comparisons by &"):
        _ = a > b and a < 0.7
    assert [m.text for m in highest(b, a, Mean(0.1)).margins] == ["0.2 < 0.5", "0.1 < 0.5"]


def test_a_ratio_to_nothing_is_not_run():
    row = judge([claim(lambda net: net("A") / net("B") < 2)], frame((A, 1), (B, 0))).row(0, named=True)
    assert (row["verdict"], row["numbers"]) == ("not run", "LeNet on MNIST: a ratio to 0")


def names(cells, **of):
    return [setting.name for setting in claim(less(A, B), of=of).settings(subjects(cells))]


def test_nets_and_pairs():
    nets = [("ViT-B16", "X"), ("LeNet", "X"), ("ResNet-50", "X"), ("ViT-B16", "Y"), ("LeNet", "Z")]
    cells = pl.concat(frame((A, i), architecture=a, dataset=d) for i, (a, d) in enumerate(nets))
    vit, cnn = among(["vit-b16"]), among(["LeNet", "ResNet-50"])
    assert names(cells, one=among(["vit-b16"], but=["y"])) == ["ViT-B16 on X"]
    assert names(cells, v=vit, c=cnn) == ["ViT-B16 and LeNet on X", "ViT-B16 and ResNet-50 on X"]
    row = judge([claim(lambda v, c: c("A") > v("A"), of={"v": vit, "c": among(["LeNet"])})], cells).row(
        0, named=True
    )
    assert row["numbers"] == (
        "1 of 1; narrowest: ViT-B16 and LeNet on X: msp[Vanilla, A] of v 0 < msp[Vanilla, A] of c 1"
    )


def test_names_that_begin_alike_are_not_alike():
    cells = pl.concat(frame((A, 1), architecture="ViT-B16", dataset=d) for d in ("CIFAR-10", "CIFAR-100"))
    assert names(cells, net=among(datasets=["CIFAR-10"])) == ["ViT-B16 on CIFAR-10"]


def test_a_stand_in_is_judged_in_the_place_of_what_it_stands_for_and_counted_apart():
    lite = frame((A, 1), (B, 2), architecture="tf_efficientnet_lite0", dataset="chest")
    stand_in = lite.with_columns(
        of_architecture=pl.lit("EfficientNet-B0"), of_dataset=pl.lit("Chest X-ray"), own=pl.lit(value=False)
    )
    what = claim(less(A, B), of={"": among(["EfficientNet-B0"], ["Chest X-ray"])})
    row = judge([what], stand_in).row(0, named=True)
    assert (row["setting"], row["of"], row["verdict"]) == (
        "tf_efficientnet_lite0 on chest",
        "other data",
        "holds",
    )
    own = frame((A, 1), (B, 2), architecture="EfficientNet-B0", dataset="Chest X-ray")
    assert judge([what], own)["of"].to_list() == ["own"]
    both = pl.concat([own, stand_in.with_columns(mean=-pl.col("mean"))], how="diagonal")
    row = judge([what], both).row(0, named=True)  # the stand-in speaks against it, and has no say
    assert (row["of"], row["verdict"], row["setting"]) == ("own", "holds", "EfficientNet-B0 on Chest X-ray")
    assert row["numbers"].startswith("1 of 1; ")
    assert judge([what], lite)["verdict"].to_list() == ["not run"]  # nobody says what it stands for


@pytest.mark.parametrize(
    ("stands", "of"),
    [
        (("ResNet-18", "CIFAR-10"), "shortened"),
        (("ResNet-50", "CIFAR-10"), "other net"),
        (("ResNet-18", "CIFAR-100"), "other data"),
        (("ResNet-50", "CIFAR-100"), "other data"),
    ],
)
def test_a_stand_in_is_told_by_how_near_it_is_and_the_nearest_judge(stands, of):
    def cells(architecture, dataset, low, **of):
        found = frame((A, low), (B, 2), architecture=architecture, dataset=dataset)
        return found.with_columns(pl.lit(value).alias(name) for name, value in of.items())

    def other(architecture, dataset):
        return {"of_architecture": architecture, "of_dataset": dataset, "own": False}

    far = cells("lenet", "digits", 3, **other("ResNet-18", "CIFAR-10"))
    near = cells("ResNet-18", "CIFAR-10", 1, **other(*stands))
    what = claim(less(A, B))
    assert judge([what], near)["of"].item() == of
    row = judge([what], pl.concat([far, near])).row(0, named=True)
    assert row["of"] == of and row["verdict"] == ("fails" if of == "other data" else "holds")
    pair = claim(lambda a, b: a("A") < b("B"), of={"a": among(["ResNet-18"]), "b": among(["own"])})
    own = cells("own", "CIFAR-10", 1, of_architecture=None, of_dataset=None, own=True)
    both = pl.concat([near, own], how="diagonal_relaxed")
    assert judge([pair], both)["of"].item() == of  # of a pair, the one that is farther off


def test_one_stand_in_for_two_nets_is_one_net_and_no_pair():
    small = frame((A, 1), (B, 2), architecture="LeNet", dataset="MNIST (S = 0.1)")
    stands = pl.concat(
        small.with_columns(
            of_architecture=pl.lit(a), of_dataset=pl.lit("CIFAR-10"), own=pl.lit(value=False)
        )
        for a in ("ResNet-18", "WideResNet-50")
    )
    what = claim(less(A, B), of={"": among(["ResNet-18", "WideResNet-50"])})
    row = judge([what], stands).row(0, named=True)
    assert row["setting"] == "LeNet on MNIST (S = 0.1)" and row["numbers"].startswith("1 of 1; ")
    assert names(stands, larger=among(["WideResNet-50"]), small=among(["ResNet-18"])) == []


def test_a_stand_in_of_two_classes_is_of_two_classes():
    pneumonia = frame((A, 1), dataset="pneumoniamnist").with_columns(of_dataset=pl.lit("Chest X-ray"))
    for chosen, there in ((among(but=BINARY), 0), (among(datasets=BINARY), 1), (among((), ["MSTAR"]), 0)):
        assert len(names(pneumonia, net=chosen)) == there


def test_frames_that_cannot_be_judged_are_refused():
    cells = frame((A, 0.1), (B, 0.9))
    with pytest.raises(InputError, match="std missing"):
        judge(CLAIMS, cells.drop("std"))
    assert verdict(claim(less(A, B)), pl.concat([cells, cells]))[0] == "holds"
    with pytest.raises(
        InputError, match=r"two numbers for one cell \(LeNet, MNIST, Vanilla, A, msp\): 0.1"
    ):
        judge(CLAIMS, pl.concat([cells, frame((A, 0.2))]))


def test_settings_are_told_apart_by_data_and_net():
    parts = [
        frame((A, a), (B, b), architecture=net, dataset=data)
        for (net, data), (a, b) in zip(product("NM", "DE"), [(1, 2), (2, 1), (1, 2), (1, 2)], strict=True)
    ]
    row = judge([claim(less(A, B), rule=MOST)], pl.concat(parts)).row(0, named=True)
    assert row["setting"] == "N on D; N on E; M on D; M on E"
    assert row["numbers"] == "3 of 4; not so: N on E: msp[Vanilla, A] 2 > msp[Vanilla, B] 1"

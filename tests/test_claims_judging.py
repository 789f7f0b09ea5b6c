"""How claims are judged, on frames whose verdicts can be worked out in the head."""

import math
from fractions import Fraction
from itertools import product

import polars as pl
import pytest

from claim_frames import A, B, C, claim, frame, verdict
from poise import InputError
from poise.paper import settings, terms
from poise.paper.claims import CLAIMS, judge
from poise.paper.claims_parts import BINARY
from poise.paper.judging import EVERY, MOST, Count, Finding, Less, Margin, Mean
from poise.paper.settings import Pair, Scope
from poise.paper.terms import Difference, Least, Ratio, Same, Size, Value


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
    assert verdict(claim((Less(A, B, by=by),)), frame((A, low, 0.03), (B, high, 0.04))) == expected


def test_one_seed_has_no_spread():
    cells = frame((A, 0.1), (B, 0.9))
    alone = cells.with_columns(n=pl.lit(1))
    assert verdict(claim((Less(A, B),)), cells) == ("holds", "clear")
    assert verdict(claim((Less(A, B),)), alone) == ("holds", "spread unknown")
    assert verdict(claim((Less(B, A),)), alone) == ("fails", "spread unknown")
    unknown = frame((A, 0.1, None), (B, 0.9))
    assert verdict(claim((Less(A, B),)), unknown) == ("holds", "spread unknown")


@pytest.mark.parametrize("mean", [None, math.nan])
def test_what_was_not_measured_is_not_run(mean):
    cells = frame((A, 0.1), (B, 0.9)).with_columns(
        mean=pl.when(pl.col("attack") == "B").then(pl.lit(mean, pl.Float64)).otherwise("mean")
    )
    row = judge([claim((Less(A, B),))], cells).row(0, named=True)
    assert (row["verdict"], row["clear"], row["setting"]) == ("not run", None, "")
    assert row["numbers"] == "LeNet on MNIST lacks msp[Vanilla, B]"


def test_a_claim_is_judged_over_the_settings_that_were_run():
    whole = frame((A, 0.1), (B, 0.9))
    part = frame((A, 0.9), architecture="ResNet-18")
    row = judge([claim((Less(A, B),))], pl.concat([whole, part])).row(0, named=True)
    assert row["verdict"] == "holds" and row["setting"] == "LeNet on MNIST"
    assert row["numbers"].startswith("1 of 1 (1 of 2 settings run); narrowest: LeNet on MNIST: ")


def test_cases_that_stand_for_themselves_are_judged_one_by_one():
    cases = ((Less(A, B),), (Less(A, C),))
    cells = frame((A, 0.1), (B, 0.9))
    assert verdict(claim(*cases), cells) == ("not run", None)
    row = judge([claim(*cases, separate=True)], cells).row(0, named=True)
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
    found = [Finding("s", (Margin(1.0 if i < held else -1.0, 0.0, ""),)) for i in range(run)]
    assert rule(found)[:2] == (expected, "clear")


def test_a_count_is_clear_if_the_unclear_cases_cannot_turn_it():
    sure, unsure, against = (Finding("s", (Margin(v, 0.1, ""),)) for v in (1.0, 0.05, -1.0))
    unknown = Finding("s", (Margin(0.05, None, ""),))
    assert MOST([sure, sure, unsure]).clear == "clear"
    assert EVERY([sure, sure, unsure]).clear == "within noise"
    assert EVERY([sure, sure, unknown]).clear == "spread unknown"
    assert EVERY([sure, unsure, unknown]).clear == "within noise"
    assert EVERY([against, unsure, unknown])[:2] == (False, "clear")
    both = Finding("s", (Margin(-0.05, 0.1, ""), Margin(0.05, None, "")))
    assert EVERY([both])[:2] == (False, "within noise")  # the spread that is not known plays no part


def test_a_mean_is_judged_by_the_mean():
    cells = frame((A, 0.1, 0.03), (B, 0.4, 0.04), (C, 0.0, 0.04))
    by = {b: claim((Less(A, B, by=b),), (Less(A, C, by=b),), rule=Mean()) for b in (0.05, 0.1)}
    assert verdict(by[0.05], cells) == ("holds", "clear")  # (.3 − .1) / 2 − .05; noise root(2 · .05²) / 2
    assert verdict(by[0.1], cells)[0] == "holds"  # exactly
    assert verdict(claim((Less(A, B, by=0.11),), (Less(A, C, by=0.11),), rule=Mean()), cells)[0] == "fails"


def test_terms_by_hand():
    numbers = {A: Value(0.2, 0.03), B: Value(0.5, 0.04)}
    assert terms.value(Difference(A, B), numbers) == pytest.approx((-0.3, 0.05))
    assert terms.value(Size(Difference(A, B)), numbers) == pytest.approx((0.3, 0.05))
    assert terms.value(Same(Difference(A, B)), numbers) == pytest.approx((-0.3, 0.0))
    assert terms.value(Least((B, A, 0.3)), numbers) == (0.2, 0.03)
    mean, std = terms.value(Ratio(A, B), numbers)
    assert mean == pytest.approx(0.4) and std == pytest.approx(0.4 * math.hypot(0.03 / 0.2, 0.04 / 0.5))
    assert math.isnan(terms.value(Ratio(A, Difference(B, B)), numbers).mean)
    assert terms.refs(Ratio(Least((A, 1.0)), Same(Size(Difference(B, C))))) == (A, B, C)
    assert terms.text(Difference(A, Difference(B, 0.5))) == "msp[Vanilla, A] - (msp[Vanilla, B] - 0.5)"
    assert terms.text(Least((A, B._replace(defense="AT")))) == "least msp[Vanilla|AT, A|B]"
    assert terms.text(Least((A, 0.5))) == "least of msp[Vanilla, A], 0.5"


def test_a_ratio_to_nothing_is_not_run():
    row = judge([claim((Less(Ratio(A, B), 2.0),))], frame((A, 1), (B, 0))).row(0, named=True)
    assert (row["verdict"], row["numbers"]) == ("not run", "LeNet on MNIST: a ratio to 0")


def test_scopes_and_pairs():
    nets = [("ViT-B16", "X"), ("LeNet", "X"), ("ResNet-50", "X"), ("ViT-B16", "Y"), ("LeNet", "Z")]
    cells = pl.concat(frame((A, i), architecture=a, dataset=d) for i, (a, d) in enumerate(nets))

    def names(scope):
        return [setting.name for setting in settings.settings(cells, (), scope)]

    assert names(Scope(architectures=("vit-b16",), but=("y",))) == ["ViT-B16 on X"]
    assert names(Pair("v", "c", ("ViT-B16",))) == ["ViT-B16 and LeNet on X", "ViT-B16 and ResNet-50 on X"]
    assert names(Pair("v", "c", ("ViT-B16",), ("ResNet-50",))) == ["ViT-B16 and ResNet-50 on X"]
    (only,) = settings.settings(cells, (), Pair("v", "c", ("ViT-B16",), ("LeNet",)))
    assert {ref.net: found.mean for ref, found in only.numbers.items()} == {"v": 0, "c": 1}


def test_names_that_begin_alike_are_not_alike():
    cells = pl.concat(frame((A, 1), architecture="ViT-B16", dataset=d) for d in ("CIFAR-10", "CIFAR-100"))
    found = settings.settings(cells, (), Scope(datasets=("CIFAR-10",)))
    assert [setting.name for setting in found] == ["ViT-B16 on CIFAR-10"]


def test_a_stand_in_is_judged_in_the_place_of_what_it_stands_for_and_counted_apart():
    lite = frame((A, 1), (B, 2), architecture="tf_efficientnet_lite0", dataset="chest")
    stand_in = lite.with_columns(
        of_architecture=pl.lit("EfficientNet-B0"), of_dataset=pl.lit("Chest X-ray"), own=pl.lit(value=False)
    )
    what = claim((Less(A, B),), scope=Scope(("EfficientNet-B0",), ("Chest X-ray",)))
    row = judge([what], stand_in).row(0, named=True)
    assert (row["setting"], row["of"], row["verdict"]) == (
        "tf_efficientnet_lite0 on chest",
        "stand-in",
        "holds",
    )
    own = frame((A, 1), (B, 2), architecture="EfficientNet-B0", dataset="Chest X-ray")
    assert judge([what], own)["of"].to_list() == ["own"]
    both = pl.concat([own, stand_in.with_columns(mean=-pl.col("mean"))], how="diagonal")
    row = judge([what], both).row(0, named=True)  # the stand-in speaks against it, and has no say
    assert (row["of"], row["verdict"], row["setting"]) == ("own", "holds", "EfficientNet-B0 on Chest X-ray")
    assert row["numbers"].startswith("1 of 1; ")
    assert judge([what], lite)["verdict"].to_list() == ["not run"]  # nobody says what it stands for


def test_one_stand_in_for_two_nets_is_one_net_and_no_pair():
    small = frame((A, 1), (B, 2), architecture="LeNet", dataset="MNIST (S = 0.1)")
    stands = pl.concat(
        small.with_columns(
            of_architecture=pl.lit(a), of_dataset=pl.lit("CIFAR-10"), own=pl.lit(value=False)
        )
        for a in ("ResNet-18", "WideResNet-50")
    )
    what = claim((Less(A, B),), scope=Scope(("ResNet-18", "WideResNet-50")))
    row = judge([what], stands).row(0, named=True)
    assert row["setting"] == "LeNet on MNIST (S = 0.1)" and row["numbers"].startswith("1 of 1; ")
    larger = Pair("larger", "small", ("WideResNet-50",), ("ResNet-18",))
    assert settings.settings(stands, (), larger) == []


def test_a_stand_in_of_two_classes_is_of_two_classes():
    pneumonia = frame((A, 1), dataset="pneumoniamnist").with_columns(of_dataset=pl.lit("Chest X-ray"))
    for scope, there in ((Scope(but=BINARY), 0), (Scope(datasets=BINARY), 1), (Scope((), ("MSTAR",)), 0)):
        assert len(settings.settings(pneumonia, (), scope)) == there


def test_frames_that_cannot_be_judged_are_refused():
    cells = frame((A, 0.1), (B, 0.9))
    with pytest.raises(InputError, match="std missing"):
        judge(CLAIMS, cells.drop("std"))
    assert verdict(claim((Less(A, B),)), pl.concat([cells, cells]))[0] == "holds"
    with pytest.raises(
        InputError, match=r"two numbers for one cell \(LeNet, MNIST, Vanilla, A, msp\): 0.1"
    ):
        judge(CLAIMS, pl.concat([cells, frame((A, 0.2))]))


def test_settings_are_told_apart_by_data_and_net():
    parts = [
        frame((A, a), (B, b), architecture=net, dataset=data)
        for (net, data), (a, b) in zip(product("NM", "DE"), [(1, 2), (2, 1), (1, 2), (1, 2)], strict=True)
    ]
    row = judge([claim((Less(A, B),), rule=MOST)], pl.concat(parts)).row(0, named=True)
    assert row["setting"] == "N on D; N on E; M on D; M on E"
    assert row["numbers"] == "3 of 4; not so: N on E: msp[Vanilla, A] 2 > msp[Vanilla, B] 1"

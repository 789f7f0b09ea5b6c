"""The claims on defenses under numbers that the scale of the logits cannot game, and under `auto`.

The confidence of right answers after `auto` is read as it is (`raw`), at the scale of the logits with the
least validation NLL (`at_k`), and at equal mean clean confidence (`matched`). `k` is that scale: below 1,
the net is overconfident. `stable` is R, the share of right answers that PGD does not flip, and `bound` is
(1 + R) / 2, which no successful attack on right answers of a continuous net can leave the mean above, but
for the margin at which it stops.
"""

from __future__ import annotations

from collections.abc import Callable

from poise.paper.claims_defenses import COUNTED, MISCLASSIFICATION, extra, others
from poise.paper.jobs import DEFENDED, UNDERCONFIDENCE
from poise.paper.judging import Claim
from poise.paper.numbers import Case, Mean, Subject, highest, lowest
from poise.paper.referee import SLACK

AUTO, CHEAP, FREE, FIVE = "Auto", "AT-5", "UAT-Smooth (unprojected)", "UAT-Smooth-5"
COMPARED = (*DEFENDED, CHEAP, FREE)
SAME = "msp_referee"  # of all these attacks on the images that `referee` takes
WAYS = {
    "raw": "under auto",
    "at_k": "under auto at k_NLL",
    "matched": "under auto at equal clean confidence",
}


def at_scale(metric: str, words: str) -> tuple[Claim, ...]:
    """The paper's claims on confidence under attack, read in one of the three ways."""

    def kept(net: Subject, defense: str) -> Mean:
        return net(AUTO, metric, defense)

    def claim(
        name: str, section: str, statement: str, says: Callable[[Subject], Case | list[Case]]
    ) -> Claim:
        return Claim(f"{name}-{metric}", f"{section}, refereed", f"{words}, {statement}", says)

    return (
        claim(
            "uat-smooth-highest",
            "5.3",
            "UAT-Smooth keeps the highest confidence",
            lambda net: highest(kept(net, "UAT-Smooth"), *(kept(net, d) for d in others("UAT-Smooth"))),
        ),
        claim(
            "uat-smooth-above-at-5",
            "5.3",
            "UAT-Smooth keeps more confidence than AT with as many gradient steps",
            lambda net: kept(net, "UAT-Smooth") > kept(net, CHEAP),
        ),
        claim(
            "uat-smooth-above-vanilla",
            "5.3",
            "UAT-Smooth keeps more confidence than the vanilla net",
            lambda net: kept(net, "UAT-Smooth") > kept(net, "Vanilla"),
        ),
        claim(
            "uat-smooth-above-half",
            "6",
            "UAT-Smooth stays above 0.5",
            lambda net: kept(net, "UAT-Smooth") > 0.5,
        ),
        claim(
            "others-below-half",
            "6",
            "every net but UAT-Smooth's is below 0.5",
            lambda net: [kept(net, d) < 0.5 for d in others("UAT-Smooth")],
        ),
        claim(
            "misclassification-defenses-more-vulnerable",
            "6",
            "AT, TRADES and RobustAugMix keep less confidence than the vanilla net",
            lambda net: [kept(net, d) < kept(net, "Vanilla") for d in MISCLASSIFICATION],
        ),
        claim(
            "trades-most-vulnerable",
            "6",
            "TRADES keeps less than AT and RobustAugMix",
            lambda net: lowest(*(kept(net, d) for d in ("TRADES", "AT", "RobustAugMix"))),
        ),
        claim(
            "confidence-peaks-at-5-steps",
            "S2",
            "UAT-Smooth keeps most when trained with 5 steps",
            lambda net: highest(kept(net, FIVE), *(kept(net, d) for d in others(FIVE, of=COUNTED))),
        ),
    )


EQUAL_COST = (
    Claim(
        "uat-smooth-matches-at-5-under-pgd",
        "5.4, refereed",
        "UAT-Smooth is as accurate under PGD as AT with as many gradient steps, or more "
        "(no more than 0.02 less)",
        lambda net: net.accuracy("UAT-Smooth").exceeds(net.accuracy(CHEAP), by=-0.02),
    ),
    Claim(
        "at-5-matches-at",
        "not in the paper",
        "AT with 5 steps is as accurate under PGD as with 10 (no more than 0.02 less): half the "
        "steps cost AT nothing either",
        lambda net: net.accuracy(CHEAP).exceeds(net.accuracy("AT"), by=-0.02),
    ),
    Claim(
        "uat-smooth-clean-accuracy-below-at-5",
        "5.4, refereed",
        "UAT-Smooth's clean accuracy is below that of AT with as many gradient steps",
        lambda net: net.accuracy("UAT-Smooth", "before") < net.accuracy(CHEAP, "before"),
    ),
    Claim(
        "uat-smooth-answers-as-stable-as-at-5",
        "not in the paper",
        "R, the share of right answers that PGD does not flip, is higher with UAT-Smooth than "
        "with AT of as many gradient steps",
        lambda net: net("PGD", "stable", "UAT-Smooth") > net("PGD", "stable", CHEAP),
    ),
)


def k(net: Subject, defense: str) -> Mean:
    """The scale of the logits of least validation NLL."""
    return net("before", "k", defense)


SCALE = (
    Claim(
        "uat-smooth-overconfident",
        "not in the paper",
        "UAT-Smooth is overconfident: k < 1",
        lambda net: k(net, "UAT-Smooth") < 1,
    ),
    Claim(
        "uat-smooth-most-overconfident",
        "not in the paper",
        "UAT-Smooth has the lowest k of all defenses",
        lambda net: lowest(k(net, "UAT-Smooth"), *(k(net, d) for d in others("UAT-Smooth"))),
    ),
    Claim(
        "at-not-overconfident",
        "not in the paper",
        "AT is not overconfident: k > 1",
        lambda net: k(net, "AT") > 1,
    ),
    Claim(
        "nothing-above-the-bound",
        "not in the paper",
        "no confidence of right answers under auto is above (1 + R) / 2, at whatever scale of "
        "the logits; above it by more than the attack's margin, the attack has failed",
        lambda net: [
            net("PGD", "bound", d).exactly().exceeds(net(AUTO, metric, d).exactly(), by=-SLACK)
            for d in COMPARED
            for metric in WAYS
        ],
        separate=True,
    ),
    Claim(
        "auto-below-the-papers-attacks",
        "not in the paper",
        "auto leaves less confidence than each of the paper's attacks, whatever the defense",
        lambda net: [net(AUTO, SAME, d) < net.least(UNDERCONFIDENCE, SAME, [d]) for d in COMPARED],
        separate=True,
    ),
)

UNPROJECTED = (
    Claim(
        "unprojected-less-accurate-clean",
        "not in the paper",
        "UAT-Smooth trained out of the ball has a lower clean accuracy than within it",
        lambda net: net.accuracy(FREE, "before") < net.accuracy("UAT-Smooth", "before"),
    ),
    Claim(
        "unprojected-more-accurate-under-pgd",
        "not in the paper",
        "UAT-Smooth trained out of the ball is more accurate under PGD than within it",
        lambda net: net.accuracy(FREE) > net.accuracy("UAT-Smooth"),
    ),
    Claim(
        "unprojected-closes-the-attacks-gap",
        "not in the paper",
        "trained out of the ball, ConfSmooth takes less beyond Adaptive than trained within it, "
        "as in the paper's Table 3",
        lambda net: extra(net, FREE) < extra(net, "UAT-Smooth"),
    ),
)

REFEREE: tuple[Claim, ...] = (
    *(claim for metric, words in WAYS.items() for claim in at_scale(metric, words)),
    *EQUAL_COST,
    *SCALE,
    *UNPROJECTED,
)

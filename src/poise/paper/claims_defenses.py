"""What the paper says of its defenses (sections 5.3, 5.4 and S2; Tables 3, 4, S2 and S3, Figure 2)."""

from __future__ import annotations

from itertools import pairwise

from poise.paper.claims_attacks import consistent
from poise.paper.jobs import COUNTS, DEFENDED, UNDERCONFIDENCE
from poise.paper.judging import MOST, Claim, among, on_average
from poise.paper.numbers import Case, Mean, Subject, every, highest, lowest

MISCLASSIFICATION = ("AT", "TRADES", "RobustAugMix")  # trained against wrong answers
UAT = ("UAT-Gap", "UAT-Smooth")
TRAINED = (*MISCLASSIFICATION, "CAAT", *UAT)
COUNTED = tuple(f"UAT-Smooth-{steps}" for steps in COUNTS)  # Table S3
RIGHT, WRONG = "msp_right", "msp_wrong"

SMALL, LARGER = among(["ResNet-18"]), among(["ResNet-50", "WideResNet-50"])


def others(*names: str, of: tuple[str, ...] = DEFENDED) -> list[str]:
    """All but these."""
    return [name for name in of if name not in names]


def extra(net: Subject, defense: str) -> Mean:
    """How far ConfSmooth goes below Adaptive."""
    return net.msp(defense, "Adaptive") - net.msp(defense)


def except_on(defense: str) -> Claim:
    """ConfSmooth's lead is least on a defense."""
    return Claim(
        f"{defense.lower()}-excepted",
        "5.3, Table 3",
        f"what ConfSmooth takes beyond Adaptive is less on {defense} than on every defense that is not UAT",
        lambda net: lowest(extra(net, defense), *(extra(net, d) for d in others(*UAT))),
    )


TABLE_3 = (
    Claim(
        "uat-smooth-highest",
        "abstract, 5.3, Table 3",
        "UAT-Smooth keeps the highest confidence under each underconfidence attack",
        lambda net: [
            highest(net.msp("UAT-Smooth", attack), *(net.msp(d, attack) for d in others("UAT-Smooth")))
            for attack in UNDERCONFIDENCE
        ],
    ),
    Claim(
        "confsmooth-strongest",
        "5.3, Table 3",
        "ConfSmooth leaves the least confidence of the three attacks, whatever the defense",
        lambda net: [lowest(net.msp(d), net.msp(d, "Dropout"), net.msp(d, "Adaptive")) for d in DEFENDED],
    ),
    Claim(
        "confsmooth-ten-points-beyond-adaptive",
        "5.3, Table 3",
        "on adversarially trained nets other than UAT, ConfSmooth leaves 0.10 less than Adaptive "
        "on average",
        lambda net: [
            net.msp(d, "Adaptive").exceeds(net.msp(d), by=0.1) for d in (*MISCLASSIFICATION, "CAAT")
        ],
        on_average,
    ),
    *map(except_on, UAT),
    Claim(
        "dropout-weakest",
        "5.3, Table 3",
        "Dropout leaves the most confidence of the three attacks, whatever the defense",
        lambda net: [highest(net.msp(d, "Dropout"), net.msp(d), net.msp(d, "Adaptive")) for d in DEFENDED],
    ),
    Claim(
        "dropout-fails-on-trained",
        "5.3, Table 3",
        "under Dropout, each adversarially trained net stays above 0.5 and above the vanilla net",
        lambda net: [
            highest(net.msp(d, "Dropout"), net.msp("Vanilla", "Dropout"), Mean(0.5)) for d in TRAINED
        ],
    ),
    Claim(
        "adaptive-below-half-mostly",
        "5.3, Table 3",
        "Adaptive brings most adversarially trained nets below 0.5",
        lambda net: [net.msp(d, "Adaptive") < 0.5 for d in TRAINED],
        MOST,
    ),
    Claim(
        "confsmooth-below-half-but-uat-smooth",
        "6, Table 3",
        "ConfSmooth brings every net but UAT-Smooth's below 0.5",
        lambda net: [net.msp(d) < 0.5 for d in others("UAT-Smooth")],
    ),
    Claim(
        "uat-smooth-stays-above-half",
        "6, Table 3",
        "UAT-Smooth stays above 0.5 under ConfSmooth",
        lambda net: net.msp("UAT-Smooth") > 0.5,
    ),
    Claim(
        "misclassification-defenses-more-vulnerable",
        "6, Table 3",
        "AT, TRADES and RobustAugMix keep less confidence under ConfSmooth than the vanilla net",
        lambda net: [net.msp(d) < net.msp("Vanilla") for d in MISCLASSIFICATION],
    ),
    Claim(
        "trades-most-vulnerable",
        "6, Table 3",
        "of AT, TRADES and RobustAugMix, TRADES keeps the least under ConfSmooth",
        lambda net: lowest(net.msp("TRADES"), net.msp("AT"), net.msp("RobustAugMix")),
    ),
    Claim(
        "misclassification-defenses-less-confident",
        "5.3, Table 3",
        "without attack, AT, TRADES and RobustAugMix are less confident than the vanilla net",
        lambda net: [net.msp(d, "before") < net.msp("Vanilla", "before") for d in MISCLASSIFICATION],
    ),
    Claim(
        "underconfidence-defenses-not-less-confident",
        "5.3, Table 3",
        "without attack, CAAT, UAT-Gap and UAT-Smooth are no less confident than the vanilla net",
        lambda net: [net.msp(d, "before") > net.msp("Vanilla", "before") for d in ("CAAT", *UAT)],
    ),
)


def separation(net: Subject, attack: str, defense: str) -> Mean:
    """How much more confident right answers are than wrong ones."""
    return net(attack, RIGHT, defense) - net(attack, WRONG, defense)


FIGURE_2 = (
    Claim(
        "wrong-answers-confidence-order",
        "5.3, Figure 2",
        "without attack, wrong answers are more confident with CAAT than with the vanilla net, "
        "and most with UAT-Smooth",
        lambda net: (
            (net("before", WRONG) < net("before", WRONG, "CAAT"))
            & (net("before", WRONG, "CAAT") < net("before", WRONG, "UAT-Smooth"))
        ),
    ),
    Claim(
        "uat-smooth-separates-best",
        "5.3, Figure 2",
        "before and after ConfSmooth, right and wrong answers differ most in confidence with "
        "UAT-Smooth (against vanilla and CAAT)",
        lambda net: [
            highest(*(separation(net, attack, d) for d in ("UAT-Smooth", "Vanilla", "CAAT")))
            for attack in ("before", "ConfSmooth")
        ],
    ),
    Claim(
        "vanilla-and-caat-collapse",
        "5.3, Figure 2",
        "after ConfSmooth, right answers are below 0.5 with the vanilla net and CAAT, above it "
        "with UAT-Smooth",
        lambda net: [
            net("ConfSmooth", RIGHT, "Vanilla") < 0.5,
            net("ConfSmooth", RIGHT, "CAAT") < 0.5,
            net("ConfSmooth", RIGHT, "UAT-Smooth") > 0.5,
        ],
    ),
)


def ece_lowest(net: Subject, defense: str, attack: str) -> Case:
    """No other defense has so low an ECE under an attack."""
    return lowest(net.ece(defense, attack), *(net.ece(d, attack) for d in others(defense)))


TABLE_S2 = (
    Claim(
        "uat-lowest-ece",
        "Table S2",
        "UAT-Gap or UAT-Smooth has the lowest ECE under each underconfidence attack",
        lambda net: [
            lowest(net.least([attack], "ece", UAT), *(net.ece(d, attack) for d in others(*UAT)))
            for attack in UNDERCONFIDENCE
        ],
    ),
    Claim(
        "uat-smooth-lowest-ece",
        "Table S2",
        "UAT-Smooth has the lowest ECE under Adaptive and under ConfSmooth",
        lambda net: [ece_lowest(net, "UAT-Smooth", attack) for attack in ("Adaptive", "ConfSmooth")],
    ),
    Claim(
        "trades-lowest-ece-under-pgd",
        "Table S2",
        "TRADES has the lowest ECE under PGD",
        lambda net: ece_lowest(net, "TRADES", "PGD"),
    ),
    *consistent(*DEFENDED, tables="3, 4, S2"),
)


def stable(net: Subject, defense: str) -> Mean:
    """Accuracy under PGD over clean accuracy."""
    return net.accuracy(defense) / net.accuracy(defense, "before")


TABLE_4 = (
    Claim(
        "vanilla-falls-to-pgd",
        "5.4, Table 4",
        "the vanilla net has accuracy 0 under PGD (to 0.005)",
        lambda net: abs(net.accuracy("Vanilla") - 0.0) < 0.005,
    ),
    Claim(
        "caat-above-vanilla",
        "5.4, Table 4",
        "CAAT is more accurate under PGD than the vanilla net",
        lambda net: net.accuracy("CAAT") > net.accuracy("Vanilla"),
    ),
    Claim(
        "uat-beats-caat-by-12-points",
        "5.4, Table 4",
        "UAT-Gap and UAT-Smooth are at least 0.12 more accurate under PGD than CAAT",
        lambda net: [net.accuracy(d).exceeds(net.accuracy("CAAT"), by=0.12) for d in UAT],
    ),
    Claim(
        "uat-smooth-comparable-to-at",
        "abstract, 5.4, Table 4",
        "UAT-Smooth is as accurate under PGD as AT, or more, with half the gradient steps "
        "(no more than 0.02 less)",
        lambda net: net.accuracy("UAT-Smooth").exceeds(net.accuracy("AT"), by=-0.02),
    ),
    Claim(
        "uat-smooth-exceeds-at-on-larger-nets",
        "5.4, Table 4",
        "on ResNet-50 and WideResNet-50, UAT-Smooth is more accurate under PGD than AT",
        lambda net: net.accuracy("UAT-Smooth") > net.accuracy("AT"),
        of={"": LARGER},
    ),
    Claim(
        "trades-best-under-pgd",
        "6, Table 4",
        "TRADES is the most accurate defense under PGD",
        lambda net: highest(net.accuracy("TRADES"), *map(net.accuracy, others("TRADES"))),
    ),
    Claim(
        "uat-smooth-costs-clean-accuracy",
        "5.4, Table 4",
        "UAT-Smooth's clean accuracy is below that of most other adversarial defenses",
        lambda net: [
            net.accuracy("UAT-Smooth", "before") < net.accuracy(d, "before")
            for d in others("UAT-Smooth", of=TRAINED)
        ],
        MOST,
    ),
    Claim(
        "uat-smooth-8-points-below-at",
        "5.4, Table 4",
        "on ResNet-18, UAT-Smooth's clean accuracy is 0.08 below AT's (to 0.02)",
        lambda net: abs(net.accuracy("AT", "before") - net.accuracy("UAT-Smooth", "before") - 0.08) < 0.02,
        of={"": SMALL},
    ),
    Claim(
        "uat-smooth-clean-accuracy-below-vanilla-and-caat",
        "6, Table 4",
        "UAT-Smooth's clean accuracy is below the vanilla net's and CAAT's",
        lambda net: lowest(*(net.accuracy(d, "before") for d in ("UAT-Smooth", "Vanilla", "CAAT"))),
    ),
    Claim(
        "larger-nets-keep-more",
        "5.4, Table 4",
        "UAT-Gap and UAT-Smooth are more accurate on ResNet-50 and WideResNet-50 than on "
        "ResNet-18, clean and under PGD",
        lambda larger, small: [
            small.accuracy(d, attack) < larger.accuracy(d, attack)
            for d in UAT
            for attack in ("before", "PGD")
        ],
        of={"larger": LARGER, "ResNet-18": lambda net: SMALL(net) and not LARGER(net)},
    ),
    Claim(
        "uat-smooth-answers-as-stable-as-at",
        "Table 4 (our reading: the share of right answers that PGD cannot flip)",
        "accuracy under PGD over clean accuracy is at least as high with UAT-Smooth as with AT",
        lambda net: stable(net, "UAT-Smooth") > stable(net, "AT"),
    ),
)

TABLE_S3 = (
    Claim(
        "clean-accuracy-falls-with-steps",
        "S2, Table S3",
        "UAT-Smooth's clean accuracy falls with each increase of its steps from 1 to 10",
        lambda net: every(
            net.accuracy(more, "before") < net.accuracy(fewer, "before")
            for fewer, more in pairwise(COUNTED)
        ),
    ),
    Claim(
        "confidence-peaks-at-5-steps",
        "S2, Table S3",
        "confidence under ConfSmooth is highest when UAT-Smooth is trained with 5 steps",
        lambda net: highest(
            net.msp("UAT-Smooth-5"), *(net.msp(d) for d in others("UAT-Smooth-5", of=COUNTED))
        ),
    ),
    Claim(
        "clean-confidence-stays-high",
        "S2, Table S3",
        "clean confidence is 0.94 or more (to 0.005) at every number of steps",
        lambda net: [net.msp(d, "before").exceeds(0.94, by=-0.005) for d in COUNTED],
    ),
    Claim(
        "3-to-5-steps-match-at",
        "S2, Tables S3, 4",
        "with 3 and with 5 steps, UAT-Smooth's clean accuracy matches AT's (no more than 0.02 less)",
        lambda net: [
            net.accuracy(d, "before").exceeds(net.accuracy("AT", "before"), by=-0.02)
            for d in ("UAT-Smooth-3", "UAT-Smooth-5")
        ],
    ),
)

DEFENSE_CLAIMS = (*TABLE_3, *FIGURE_2, *TABLE_S2, *TABLE_4, *TABLE_S3)

"""What the paper says of its defenses' accuracy and cost (sections 5.4 and S2; Tables 4 and S3)."""

from __future__ import annotations

from itertools import pairwise

from poise.paper.claims_parts import (
    COUNTED,
    TRAINED,
    UAT,
    accuracy,
    highest,
    lowest,
    msp,
    near,
    others,
)
from poise.paper.judging import MOST, Claim, Less
from poise.paper.settings import Pair, Scope
from poise.paper.terms import Difference, Ratio

LARGER = Pair("larger", "ResNet-18", firsts=("ResNet-50", "WideResNet-50"), seconds=("ResNet-18",))

TABLE_4 = (
    Claim(
        name="vanilla-falls-to-pgd",
        section="5.4, Table 4",
        statement="the vanilla net has accuracy 0 under PGD (to 0.005)",
        cases=((near(accuracy("Vanilla"), 0.0, 0.005),),),
        tables=("4",),
    ),
    Claim(
        name="caat-above-vanilla",
        section="5.4, Table 4",
        statement="CAAT is more accurate under PGD than the vanilla net",
        cases=((Less(accuracy("Vanilla"), accuracy("CAAT")),),),
        tables=("4",),
    ),
    Claim(
        name="uat-beats-caat-by-12-points",
        section="5.4, Table 4",
        statement="UAT-Gap and UAT-Smooth are at least 0.12 more accurate under PGD than CAAT",
        cases=tuple((Less(accuracy("CAAT"), accuracy(d), by=0.12),) for d in UAT),
        tables=("4",),
    ),
    Claim(
        name="uat-smooth-comparable-to-at",
        section="abstract, 5.4, Table 4",
        statement="UAT-Smooth is as accurate under PGD as AT, or more, with half the gradient steps "
        "(no more than 0.02 less)",
        cases=((Less(accuracy("AT"), accuracy("UAT-Smooth"), by=-0.02),),),
        tables=("4",),
    ),
    Claim(
        name="uat-smooth-exceeds-at-on-larger-nets",
        section="5.4, Table 4",
        statement="on ResNet-50 and WideResNet-50, UAT-Smooth is more accurate under PGD than AT",
        cases=((Less(accuracy("AT"), accuracy("UAT-Smooth")),),),
        tables=("4",),
        scope=Scope(architectures=("ResNet-50", "WideResNet-50")),
    ),
    Claim(
        name="trades-best-under-pgd",
        section="6, Table 4",
        statement="TRADES is the most accurate defense under PGD",
        cases=(highest(accuracy("TRADES"), *map(accuracy, others("TRADES"))),),
        tables=("4",),
    ),
    Claim(
        name="uat-smooth-costs-clean-accuracy",
        section="5.4, Table 4",
        statement="UAT-Smooth's clean accuracy is below that of most other adversarial defenses",
        cases=tuple(
            (Less(accuracy("UAT-Smooth", "before"), accuracy(d, "before")),)
            for d in TRAINED
            if d != "UAT-Smooth"
        ),
        rule=MOST,
        tables=("4",),
    ),
    Claim(
        name="uat-smooth-8-points-below-at",
        section="5.4, Table 4",
        statement="on ResNet-18, UAT-Smooth's clean accuracy is 0.08 below AT's (to 0.02)",
        cases=(
            (near(Difference(accuracy("AT", "before"), accuracy("UAT-Smooth", "before")), 0.08, 0.02),),
        ),
        tables=("4",),
        scope=Scope(architectures=("ResNet-18",)),
    ),
    Claim(
        name="uat-smooth-clean-accuracy-below-vanilla-and-caat",
        section="6, Table 4",
        statement="UAT-Smooth's clean accuracy is below the vanilla net's and CAAT's",
        cases=(lowest(*(accuracy(d, "before") for d in ("UAT-Smooth", "Vanilla", "CAAT"))),),
        tables=("4",),
    ),
    Claim(
        name="larger-nets-keep-more",
        section="5.4, Table 4",
        statement="UAT-Gap and UAT-Smooth are more accurate on ResNet-50 and WideResNet-50 than on "
        "ResNet-18, clean and under PGD",
        cases=tuple(
            (Less(accuracy(d, a)._replace(net="ResNet-18"), accuracy(d, a)._replace(net="larger")),)
            for d in UAT
            for a in ("before", "PGD")
        ),
        tables=("4",),
        scope=LARGER,
    ),
    Claim(
        name="uat-smooth-answers-as-stable-as-at",
        section="Table 4 (our reading: the share of right answers that PGD cannot flip)",
        statement="accuracy under PGD over clean accuracy is at least as high with UAT-Smooth as with AT",
        cases=(
            (
                Less(
                    Ratio(accuracy("AT"), accuracy("AT", "before")),
                    Ratio(accuracy("UAT-Smooth"), accuracy("UAT-Smooth", "before")),
                ),
            ),
        ),
        tables=("4",),
    ),
)

TABLE_S3 = (
    Claim(
        name="clean-accuracy-falls-with-steps",
        section="S2, Table S3",
        statement="UAT-Smooth's clean accuracy falls with each increase of its steps from 1 to 10",
        cases=(
            tuple(
                Less(accuracy(more, "before"), accuracy(fewer, "before"))
                for fewer, more in pairwise(COUNTED)
            ),
        ),
        tables=("S3",),
    ),
    Claim(
        name="confidence-peaks-at-5-steps",
        section="S2, Table S3",
        statement="confidence under ConfSmooth is highest when UAT-Smooth is trained with 5 steps",
        cases=(highest(msp("UAT-Smooth-5"), *(msp(d) for d in COUNTED if d != "UAT-Smooth-5")),),
        tables=("S3",),
    ),
    Claim(
        name="clean-confidence-stays-high",
        section="S2, Table S3",
        statement="clean confidence is 0.94 or more (to 0.005) at every number of steps",
        cases=tuple((Less(0.94, msp(d, "before"), by=-0.005),) for d in COUNTED),
        tables=("S3",),
    ),
    Claim(
        name="3-to-5-steps-match-at",
        section="S2, Tables S3, 4",
        statement="with 3 and with 5 steps, UAT-Smooth's clean accuracy matches AT's (no more than "
        "0.02 less)",
        cases=tuple(
            (Less(accuracy("AT", "before"), accuracy(d, "before"), by=-0.02),)
            for d in ("UAT-Smooth-3", "UAT-Smooth-5")
        ),
        tables=("4", "S3"),
    ),
)

ACCURACY_CLAIMS = (*TABLE_4, *TABLE_S3)

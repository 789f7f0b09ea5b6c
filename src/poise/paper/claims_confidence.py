"""What the paper says of its defenses' confidence (section 5.3; Tables 3 and S2, Figure 2)."""

from __future__ import annotations

from poise.paper.claims_parts import (
    DEFENSES,
    MISCLASSIFICATION,
    TRAINED,
    UAT,
    UNDER,
    cell,
    consistent,
    ece,
    highest,
    lowest,
    msp,
    others,
)
from poise.paper.judging import MOST, Claim, Less, Mean
from poise.paper.terms import Difference, Least


def extra(defense: str) -> Difference:
    """How far ConfSmooth goes below Adaptive."""
    return Difference(msp(defense, "Adaptive"), msp(defense))


TABLE_3 = (
    Claim(
        name="uat-smooth-highest",
        section="abstract, 5.3, Table 3",
        statement="UAT-Smooth keeps the highest confidence under each underconfidence attack",
        cases=tuple(
            highest(msp("UAT-Smooth", attack), *(msp(d, attack) for d in others("UAT-Smooth")))
            for attack in UNDER
        ),
        tables=("3",),
    ),
    Claim(
        name="confsmooth-strongest",
        section="5.3, Table 3",
        statement="ConfSmooth leaves the least confidence of the three attacks, whatever the defense",
        cases=tuple(lowest(msp(d), msp(d, "Dropout"), msp(d, "Adaptive")) for d in DEFENSES),
        tables=("3",),
    ),
    Claim(
        name="confsmooth-ten-points-beyond-adaptive",
        section="5.3, Table 3",
        statement="on adversarially trained nets other than UAT, ConfSmooth leaves 0.10 less than Adaptive "
        "on average",
        cases=tuple((Less(msp(d), msp(d, "Adaptive"), by=0.1),) for d in (*MISCLASSIFICATION, "CAAT")),
        rule=Mean(),
        tables=("3",),
    ),
    *(
        Claim(
            name=f"{defense.lower()}-excepted",
            section="5.3, Table 3",
            statement=f"what ConfSmooth takes beyond Adaptive is less on {defense} than on every defense "
            "that is not UAT",
            cases=(lowest(extra(defense), *(extra(d) for d in DEFENSES if d not in UAT)),),
            tables=("3",),
        )
        for defense in UAT
    ),
    Claim(
        name="dropout-weakest",
        section="5.3, Table 3",
        statement="Dropout leaves the most confidence of the three attacks, whatever the defense",
        cases=tuple(highest(msp(d, "Dropout"), msp(d), msp(d, "Adaptive")) for d in DEFENSES),
        tables=("3",),
    ),
    Claim(
        name="dropout-fails-on-trained",
        section="5.3, Table 3",
        statement="under Dropout, each adversarially trained net stays above 0.5 and above the vanilla net",
        cases=tuple(
            (Less(msp("Vanilla", "Dropout"), msp(d, "Dropout")), Less(0.5, msp(d, "Dropout")))
            for d in TRAINED
        ),
        tables=("3",),
    ),
    Claim(
        name="adaptive-below-half-mostly",
        section="5.3, Table 3",
        statement="Adaptive brings most adversarially trained nets below 0.5",
        cases=tuple((Less(msp(d, "Adaptive"), 0.5),) for d in TRAINED),
        rule=MOST,
        tables=("3",),
    ),
    Claim(
        name="confsmooth-below-half-but-uat-smooth",
        section="6, Table 3",
        statement="ConfSmooth brings every net but UAT-Smooth's below 0.5",
        cases=tuple((Less(msp(d), 0.5),) for d in others("UAT-Smooth")),
        tables=("3",),
    ),
    Claim(
        name="uat-smooth-stays-above-half",
        section="6, Table 3",
        statement="UAT-Smooth stays above 0.5 under ConfSmooth",
        cases=((Less(0.5, msp("UAT-Smooth")),),),
        tables=("3",),
    ),
    Claim(
        name="misclassification-defenses-more-vulnerable",
        section="6, Table 3",
        statement="AT, TRADES and RobustAugMix keep less confidence under ConfSmooth than the vanilla net",
        cases=tuple((Less(msp(d), msp("Vanilla")),) for d in MISCLASSIFICATION),
        tables=("3",),
    ),
    Claim(
        name="trades-most-vulnerable",
        section="6, Table 3",
        statement="of AT, TRADES and RobustAugMix, TRADES keeps the least under ConfSmooth",
        cases=(lowest(msp("TRADES"), msp("AT"), msp("RobustAugMix")),),
        tables=("3",),
    ),
    Claim(
        name="misclassification-defenses-less-confident",
        section="5.3, Table 3",
        statement="without attack, AT, TRADES and RobustAugMix are less confident than the vanilla net",
        cases=tuple((Less(msp(d, "before"), msp("Vanilla", "before")),) for d in MISCLASSIFICATION),
        tables=("3",),
    ),
    Claim(
        name="underconfidence-defenses-not-less-confident",
        section="5.3, Table 3",
        statement="without attack, CAAT, UAT-Gap and UAT-Smooth are no less confident than the vanilla net",
        cases=tuple((Less(msp("Vanilla", "before"), msp(d, "before")),) for d in ("CAAT", *UAT)),
        tables=("3",),
    ),
)

RIGHT, WRONG = "msp_right", "msp_wrong"

FIGURE_2 = (
    Claim(
        name="wrong-answers-confidence-order",
        section="5.3, Figure 2",
        statement="without attack, wrong answers are more confident with CAAT than with the vanilla net, "
        "and most with UAT-Smooth",
        cases=(
            (
                Less(cell("before", WRONG), cell("before", WRONG, "CAAT")),
                Less(cell("before", WRONG, "CAAT"), cell("before", WRONG, "UAT-Smooth")),
            ),
        ),
    ),
    Claim(
        name="uat-smooth-separates-best",
        section="5.3, Figure 2",
        statement="before and after ConfSmooth, right and wrong answers differ most in confidence with "
        "UAT-Smooth (against vanilla and CAAT)",
        cases=tuple(
            highest(
                *(
                    Difference(cell(attack, RIGHT, d), cell(attack, WRONG, d))
                    for d in ("UAT-Smooth", "Vanilla", "CAAT")
                )
            )
            for attack in ("before", "ConfSmooth")
        ),
    ),
    Claim(
        name="vanilla-and-caat-collapse",
        section="5.3, Figure 2",
        statement="after ConfSmooth, right answers are below 0.5 with the vanilla net and CAAT, above it "
        "with UAT-Smooth",
        cases=(
            *((Less(cell("ConfSmooth", RIGHT, d), 0.5),) for d in ("Vanilla", "CAAT")),
            (Less(0.5, cell("ConfSmooth", RIGHT, "UAT-Smooth")),),
        ),
    ),
)

TABLE_S2 = (
    Claim(
        name="uat-lowest-ece",
        section="Table S2",
        statement="UAT-Gap or UAT-Smooth has the lowest ECE under each underconfidence attack",
        cases=tuple(
            lowest(
                Least(tuple(ece(d, attack) for d in UAT)),
                *(ece(d, attack) for d in DEFENSES if d not in UAT),
            )
            for attack in UNDER
        ),
        tables=("S2",),
    ),
    Claim(
        name="uat-smooth-lowest-ece",
        section="Table S2",
        statement="UAT-Smooth has the lowest ECE under Adaptive and under ConfSmooth",
        cases=tuple(
            lowest(ece("UAT-Smooth", attack), *(ece(d, attack) for d in others("UAT-Smooth")))
            for attack in ("Adaptive", "ConfSmooth")
        ),
        tables=("S2",),
    ),
    Claim(
        name="trades-lowest-ece-under-pgd",
        section="Table S2",
        statement="TRADES has the lowest ECE under PGD",
        cases=(lowest(ece("TRADES", "PGD"), *(ece(d, "PGD") for d in others("TRADES"))),),
        tables=("S2",),
    ),
    *consistent(*DEFENSES, tables=("3", "4", "S2")),
)

CONFIDENCE_CLAIMS = (*TABLE_3, *FIGURE_2, *TABLE_S2)

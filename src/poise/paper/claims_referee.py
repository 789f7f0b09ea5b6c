"""The claims on defenses under numbers that the scale of the logits cannot game, and under `auto`.

The confidence of right answers after `auto` is read as it is (`raw`), at the scale of the logits with the
least validation NLL (`at_k`), and at equal mean clean confidence (`matched`). `k` is that scale: below 1,
the net is overconfident. `stable` is R, the share of right answers that PGD does not flip, and `bound` is
(1 + R) / 2, which no successful attack on right answers of a continuous net can leave the mean above, but
for the margin at which it stops.
"""

from __future__ import annotations

from poise.auditing.comparison import SLACK
from poise.paper.claims_parts import (
    COUNTED,
    DEFENSES,
    MISCLASSIFICATION,
    UNDER,
    accuracy,
    cell,
    highest,
    lowest,
    msp,
    others,
)
from poise.paper.judging import Claim, Less
from poise.paper.terms import Difference, Least, Ref, Same

AUTO, CHEAP, FREE, FIVE = "Auto", "AT-5", "UAT-Smooth (unprojected)", "UAT-Smooth-5"
SAME = "msp_referee"  # of all these attacks on the images that `poise compare` takes
READ = {
    "raw": "under auto",
    "at_k": "under auto at k_NLL",
    "matched": "under auto at equal clean confidence",
}


def auto(defense: str, metric: str) -> Ref:
    """A defense's right answers under auto."""
    return cell(AUTO, metric, defense)


def k(defense: str) -> Ref:
    """The scale of the logits of least validation NLL."""
    return cell("before", "k", defense)


def stable(defense: str) -> Ref:
    """R."""
    return cell("PGD", "stable", defense)


def at_scale(metric: str, words: str) -> tuple[Claim, ...]:
    """The paper's claims on confidence under attack, read in one of the three ways."""
    uat = auto("UAT-Smooth", metric)
    return (
        Claim(
            name=f"uat-smooth-highest-{metric}",
            section="5.3, refereed",
            statement=f"{words}, UAT-Smooth keeps the highest confidence",
            cases=(highest(uat, *(auto(d, metric) for d in others("UAT-Smooth"))),),
        ),
        Claim(
            name=f"uat-smooth-above-at-5-{metric}",
            section="5.3, refereed",
            statement=f"{words}, UAT-Smooth keeps more confidence than AT with as many gradient steps",
            cases=((Less(auto(CHEAP, metric), uat),),),
        ),
        Claim(
            name=f"uat-smooth-above-vanilla-{metric}",
            section="5.3, refereed",
            statement=f"{words}, UAT-Smooth keeps more confidence than the vanilla net",
            cases=((Less(auto("Vanilla", metric), uat),),),
        ),
        Claim(
            name=f"uat-smooth-above-half-{metric}",
            section="6, refereed",
            statement=f"{words}, UAT-Smooth stays above 0.5",
            cases=((Less(0.5, uat),),),
        ),
        Claim(
            name=f"others-below-half-{metric}",
            section="6, refereed",
            statement=f"{words}, every net but UAT-Smooth's is below 0.5",
            cases=tuple((Less(auto(d, metric), 0.5),) for d in others("UAT-Smooth")),
        ),
        Claim(
            name=f"misclassification-defenses-more-vulnerable-{metric}",
            section="6, refereed",
            statement=f"{words}, AT, TRADES and RobustAugMix keep less confidence than the vanilla net",
            cases=tuple((Less(auto(d, metric), auto("Vanilla", metric)),) for d in MISCLASSIFICATION),
        ),
        Claim(
            name=f"trades-most-vulnerable-{metric}",
            section="6, refereed",
            statement=f"{words}, TRADES keeps less than AT and RobustAugMix",
            cases=(lowest(*(auto(d, metric) for d in ("TRADES", "AT", "RobustAugMix"))),),
        ),
        Claim(
            name=f"confidence-peaks-at-5-steps-{metric}",
            section="S2, refereed",
            statement=f"{words}, UAT-Smooth keeps most when trained with 5 steps",
            cases=(highest(auto(FIVE, metric), *(auto(d, metric) for d in COUNTED if d != FIVE)),),
        ),
    )


EQUAL_COST = (
    Claim(
        name="uat-smooth-matches-at-5-under-pgd",
        section="5.4, refereed",
        statement="UAT-Smooth is as accurate under PGD as AT with as many gradient steps, or more "
        "(no more than 0.02 less)",
        cases=((Less(accuracy(CHEAP), accuracy("UAT-Smooth"), by=-0.02),),),
    ),
    Claim(
        name="at-5-matches-at",
        section="not in the paper",
        statement="AT with 5 steps is as accurate under PGD as with 10 (no more than 0.02 less): half the "
        "steps cost AT nothing either",
        cases=((Less(accuracy("AT"), accuracy(CHEAP), by=-0.02),),),
    ),
    Claim(
        name="uat-smooth-clean-accuracy-below-at-5",
        section="5.4, refereed",
        statement="UAT-Smooth's clean accuracy is below that of AT with as many gradient steps",
        cases=((Less(accuracy("UAT-Smooth", "before"), accuracy(CHEAP, "before")),),),
    ),
    Claim(
        name="uat-smooth-answers-as-stable-as-at-5",
        section="not in the paper",
        statement="R, the share of right answers that PGD does not flip, is higher with UAT-Smooth than "
        "with AT of as many gradient steps",
        cases=((Less(stable(CHEAP), stable("UAT-Smooth")),),),
    ),
)

SCALE = (
    Claim(
        name="uat-smooth-overconfident",
        section="not in the paper",
        statement="UAT-Smooth is overconfident: k < 1",
        cases=((Less(k("UAT-Smooth"), 1.0),),),
    ),
    Claim(
        name="uat-smooth-most-overconfident",
        section="not in the paper",
        statement="UAT-Smooth has the lowest k of all defenses",
        cases=(lowest(k("UAT-Smooth"), *map(k, others("UAT-Smooth"))),),
    ),
    Claim(
        name="at-not-overconfident",
        section="not in the paper",
        statement="AT is not overconfident: k > 1",
        cases=((Less(1.0, k("AT")),),),
    ),
    Claim(
        name="nothing-above-the-bound",
        section="not in the paper",
        statement="no confidence of right answers under auto is above (1 + R) / 2, at whatever scale of "
        "the logits; above it by more than the attack's margin, the attack has failed",
        cases=tuple(
            (Less(Same(auto(d, metric)), Same(cell("PGD", "bound", d)), by=-SLACK),)
            for d in (*DEFENSES, CHEAP, FREE)
            for metric in READ
        ),
        separate=True,
    ),
    Claim(
        name="auto-below-the-papers-attacks",
        section="not in the paper",
        statement="auto leaves less confidence than each of the paper's attacks, whatever the defense",
        cases=tuple(
            (Less(auto(d, SAME), Least(tuple(cell(a, SAME, d) for a in UNDER))),)
            for d in (*DEFENSES, CHEAP, FREE)
        ),
        separate=True,
    ),
)

UNPROJECTED = (
    Claim(
        name="unprojected-less-accurate-clean",
        section="not in the paper",
        statement="UAT-Smooth trained out of the ball has a lower clean accuracy than within it",
        cases=((Less(accuracy(FREE, "before"), accuracy("UAT-Smooth", "before")),),),
    ),
    Claim(
        name="unprojected-more-accurate-under-pgd",
        section="not in the paper",
        statement="UAT-Smooth trained out of the ball is more accurate under PGD than within it",
        cases=((Less(accuracy("UAT-Smooth"), accuracy(FREE)),),),
    ),
    Claim(
        name="unprojected-closes-the-attacks-gap",
        section="not in the paper",
        statement="trained out of the ball, ConfSmooth takes less beyond Adaptive than trained within it, "
        "as in the paper's Table 3",
        cases=(
            (
                Less(
                    Difference(msp(FREE, "Adaptive"), msp(FREE)),
                    Difference(msp("UAT-Smooth", "Adaptive"), msp("UAT-Smooth")),
                ),
            ),
        ),
    ),
)

REFEREE: tuple[Claim, ...] = (
    *(claim for metric, words in READ.items() for claim in at_scale(metric, words)),
    *EQUAL_COST,
    *SCALE,
    *UNPROJECTED,
)

"""What the paper says of its attacks (sections 5.1 and 5.2; Tables 1, 2 and S1) that numbers can judge."""

from __future__ import annotations

from fractions import Fraction

from poise.paper.claims_parts import BINARY, UNDER, cell, consistent, highest, lowest, near
from poise.paper.judging import MOST, Claim, Count, Less
from poise.paper.settings import Pair, Scope
from poise.paper.terms import Least, Ratio

DROPOUT, ADAPTIVE, CONFSMOOTH = (cell(attack) for attack in UNDER)
CONFSMOOTH_LOWEST = lowest(CONFSMOOTH, DROPOUT, ADAPTIVE)
WORST = {net: Least(tuple(cell(a)._replace(net=net) for a in UNDER)) for net in ("ViT", "CNN")}
VIT_AND_CNN = Pair("ViT", "CNN", firsts=("ViT-B16",))
VIT_ABOVE = (Less(WORST["CNN"], WORST["ViT"]),)

TABLE_1 = (
    Claim(
        name="ours-lowest-14-of-15",
        section="abstract, Table 1",
        statement="Adaptive or ConfSmooth leaves less confidence than Dropout on 14 of 15 nets",
        cases=(lowest(Least((ADAPTIVE, CONFSMOOTH)), DROPOUT),),
        rule=Count(at_least=Fraction(14, 15)),
        tables=("1",),
    ),
    Claim(
        name="confsmooth-lowest-12-of-15",
        section="5.1, Table 1",
        statement="ConfSmooth leaves the least confidence on 12 of 15 nets: all but those on ultrasound",
        cases=(CONFSMOOTH_LOWEST,),
        rule=Count(at_least=Fraction(12, 15)),
        tables=("1",),
    ),
    Claim(
        name="confsmooth-lowest-mostly",
        section="Table 1, caption",
        statement="ConfSmooth leaves the least confidence on most nets",
        cases=(CONFSMOOTH_LOWEST,),
        rule=MOST,
        tables=("1",),
    ),
    Claim(
        name="confsmooth-lowest-but-binary",
        section="5.1, Table 1",
        statement="with more than two classes, ConfSmooth leaves the least confidence on every net "
        "(the paper itself excepts EfficientNet on chest X-rays)",
        cases=(CONFSMOOTH_LOWEST,),
        tables=("1",),
        scope=Scope(but=BINARY),
    ),
    Claim(
        name="confsmooth-below-half",
        section="6, Table 1",
        statement="with more than two classes, ConfSmooth brings every undefended net below 0.5",
        cases=((Less(CONFSMOOTH, 0.5),),),
        tables=("1",),
        scope=Scope(but=BINARY),
    ),
    Claim(
        name="dropout-lowest-once",
        section="5.1, Table 1",
        statement="Dropout leaves the least confidence on no more than 1 net of 15",
        cases=(lowest(DROPOUT, ADAPTIVE, CONFSMOOTH),),
        rule=Count(at_least=Fraction(0), at_most=Fraction(1, 15)),
        tables=("1",),
    ),
    Claim(
        name="adaptive-improves-on-dropout",
        section="5.1, Table 1",
        statement="Adaptive leaves less confidence than Dropout on most nets",
        cases=(lowest(ADAPTIVE, DROPOUT),),
        rule=MOST,
        tables=("1",),
    ),
    Claim(
        name="adaptive-weak-on-imagenet",
        section="5.1, Table 1",
        statement="on ImageNet, Adaptive is the weakest of the three underconfidence attacks",
        cases=(highest(ADAPTIVE, DROPOUT, CONFSMOOTH),),
        tables=("1",),
        scope=Scope(datasets=("ImageNet",)),
    ),
    Claim(
        name="binary-near-half",
        section="5.1, Table 1",
        statement="with two classes, every underconfidence attack ends within 0.05 of 0.5",
        cases=tuple((near(cell(attack), 0.5, 0.05),) for attack in UNDER),
        tables=("1",),
        scope=Scope(datasets=BINARY),
    ),
    Claim(
        name="binary-adaptive-lowest",
        section="5.1, Table 1",
        statement="with two classes, Adaptive leaves the least confidence",
        cases=(lowest(ADAPTIVE, DROPOUT, CONFSMOOTH),),
        tables=("1",),
        scope=Scope(datasets=BINARY),
    ),
    Claim(
        name="chest-half-resists",
        section="5.1",
        statement="on chest X-rays, 47 % of the images keep 0.5 or more under ConfSmooth (within 5 points)",
        cases=((near(cell("ConfSmooth", "above_half"), 0.47, 0.05),),),
        scope=Scope(architectures=("EfficientNet-B0",), datasets=("Chest X-ray",)),
    ),
    Claim(
        name="vit-generally-above-cnn",
        section="5.1, Table 1",
        statement="under the strongest of the three attacks, a ViT keeps more confidence than a CNN on the "
        "same data in most pairs",
        cases=(VIT_ABOVE,),
        rule=MOST,
        tables=("1",),
        scope=VIT_AND_CNN,
    ),
    Claim(
        name="vit-always-above-cnn",
        section="6, Table 1",
        statement="under the strongest of the three attacks, a ViT keeps more confidence than a CNN on the "
        "same data in every pair",
        cases=(VIT_ABOVE,),
        tables=("1",),
        scope=VIT_AND_CNN,
    ),
    Claim(
        name="ece-highest-under-confsmooth",
        section="Table S1",
        statement="ConfSmooth leaves the highest ECE on most nets",
        cases=(highest(cell("ConfSmooth", "ece"), cell("Dropout", "ece"), cell("Adaptive", "ece")),),
        rule=MOST,
        tables=("S1",),
    ),
)

MOVED = {attack: cell(attack, "delta_w") for attack in ("PGD", *UNDER)}
ALIKE = {attack: cell(attack, "ssim") for attack in ("PGD", *UNDER)}

TABLE_2 = (
    Claim(
        name="confsmooth-moves-most",
        section="5.2, Table 2",
        statement="ConfSmooth has the largest perturbations (ΔW) of the four attacks",
        cases=(highest(MOVED["ConfSmooth"], MOVED["PGD"], MOVED["Dropout"], MOVED["Adaptive"]),),
        tables=("2",),
    ),
    Claim(
        name="confsmooth-least-similar",
        section="5.2, Table 2",
        statement="ConfSmooth has the lowest SSIM of the four attacks",
        cases=(lowest(ALIKE["ConfSmooth"], ALIKE["PGD"], ALIKE["Dropout"], ALIKE["Adaptive"]),),
        tables=("2",),
    ),
    Claim(
        name="pgd-most-similar",
        section="5.2, Table 2",
        statement="PGD has the highest SSIM of the four attacks",
        cases=(highest(ALIKE["PGD"], *(ALIKE[attack] for attack in UNDER)),),
        tables=("2",),
    ),
    Claim(
        name="dropout-smaller-yet-less-similar",
        section="5.2, Table 2",
        statement="Dropout's perturbations are smaller than PGD's, at a lower SSIM",
        cases=((Less(MOVED["Dropout"], MOVED["PGD"]), Less(ALIKE["Dropout"], ALIKE["PGD"])),),
        tables=("2",),
    ),
    Claim(
        name="adaptive-larger-than-pgd",
        section="5.2, Table 2",
        statement="Adaptive's perturbations are larger than PGD's, at a lower SSIM",
        cases=((Less(MOVED["PGD"], MOVED["Adaptive"]), Less(ALIKE["Adaptive"], ALIKE["PGD"])),),
        tables=("2",),
    ),
    Claim(
        name="confsmooth-nearly-four-times-pgd",
        section="5.4, Table 2",
        statement="ConfSmooth's perturbations are nearly four times PGD's (3.5 to 4 times)",
        cases=(
            (
                Less(3.5, Ratio(MOVED["ConfSmooth"], MOVED["PGD"])),
                Less(Ratio(MOVED["ConfSmooth"], MOVED["PGD"]), 4.0),
            ),
        ),
        tables=("2",),
    ),
    Claim(
        name="confsmooth-avoids-salient-pixels",
        section="5.2, Figure 1",
        statement="ConfSmooth's perturbations fall on pixels that matter less than chance would hit",
        cases=((Less(cell("ConfSmooth", "salience"), cell("chance", "salience")),),),
    ),
    Claim(
        name="underconfidence-avoids-salient-pixels",
        section="5.2, Figure 1",
        statement="each underconfidence attack falls on pixels that matter less than PGD's do",
        cases=tuple((Less(cell(attack, "salience"), cell("PGD", "salience")),) for attack in UNDER),
    ),
    Claim(
        name="confsmooth-avoids-salient-pixels-most",
        section="5.2, Figure 1",
        statement="ConfSmooth falls on pixels that matter less than those of the other three attacks",
        cases=(lowest(*(cell(a, "salience") for a in ("ConfSmooth", "PGD", "Dropout", "Adaptive"))),),
    ),
)


ATTACK_CLAIMS = (*TABLE_1, *TABLE_2, *consistent("Vanilla", tables=("1", "S1")))

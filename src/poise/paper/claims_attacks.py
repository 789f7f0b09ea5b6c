"""What the paper says of its attacks (sections 5.1 and 5.2; Tables 1, 2 and S1) that numbers can judge."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from poise.paper.jobs import UNDERCONFIDENCE
from poise.paper.judging import MOST, Claim, Count, among
from poise.paper.numbers import Case, Mean, Subject, highest, lowest

BINARY = ("Breast Cancer Ultrasound", "BreastMNIST", "PneumoniaMNIST")  # data sets of two classes

FOUR = ("PGD", *UNDERCONFIDENCE)

ON_BINARY, ON_MORE = {"": among(datasets=BINARY)}, {"": among(but=BINARY)}
VIT_AND_CNN = {"ViT": among(["ViT-B16"]), "CNN": lambda net: not among(["ViT-B16"])(net)}


def led_by(
    first: str, net: Subject, metric: str = "msp", attacks: Sequence[str] = UNDERCONFIDENCE
) -> list[Mean]:
    """What one attack leaves of a net, then what the others do."""
    return [net(attack, metric) for attack in (first, *(other for other in attacks if other != first))]


def confsmooth_lowest(net: Subject) -> Case:
    """ConfSmooth leaves less confidence than Dropout and Adaptive."""
    return lowest(*led_by("ConfSmooth", net))


def vit_above(vit: Subject, cnn: Subject) -> Case:
    """The ViT keeps more under the strongest of the three."""
    return cnn.least(UNDERCONFIDENCE) < vit.least(UNDERCONFIDENCE)


TABLE_1 = (
    Claim(
        "ours-lowest-14-of-15",
        "abstract, Table 1",
        "Adaptive or ConfSmooth leaves less confidence than Dropout on 14 of 15 nets",
        lambda net: net.least(["Adaptive", "ConfSmooth"]) < net("Dropout"),
        Count(at_least=Fraction(14, 15)),
    ),
    Claim(
        "confsmooth-lowest-12-of-15",
        "5.1, Table 1",
        "ConfSmooth leaves the least confidence on 12 of 15 nets: all but those on ultrasound",
        confsmooth_lowest,
        Count(at_least=Fraction(12, 15)),
    ),
    Claim(
        "confsmooth-lowest-mostly",
        "Table 1, caption",
        "ConfSmooth leaves the least confidence on most nets",
        confsmooth_lowest,
        MOST,
    ),
    Claim(
        "confsmooth-lowest-but-binary",
        "5.1, Table 1",
        "with more than two classes, ConfSmooth leaves the least confidence on every net "
        "(the paper itself excepts EfficientNet on chest X-rays)",
        confsmooth_lowest,
        of=ON_MORE,
    ),
    Claim(
        "confsmooth-below-half",
        "6, Table 1",
        "with more than two classes, ConfSmooth brings every undefended net below 0.5",
        lambda net: net("ConfSmooth") < 0.5,
        of=ON_MORE,
    ),
    Claim(
        "dropout-lowest-once",
        "5.1, Table 1",
        "Dropout leaves the least confidence on no more than 1 net of 15",
        lambda net: lowest(*led_by("Dropout", net)),
        Count(at_least=Fraction(0), at_most=Fraction(1, 15)),
    ),
    Claim(
        "adaptive-improves-on-dropout",
        "5.1, Table 1",
        "Adaptive leaves less confidence than Dropout on most nets",
        lambda net: net("Adaptive") < net("Dropout"),
        MOST,
    ),
    Claim(
        "adaptive-weak-on-imagenet",
        "5.1, Table 1",
        "on ImageNet, Adaptive is the weakest of the three underconfidence attacks",
        lambda net: highest(*led_by("Adaptive", net)),
        of={"": among(datasets=["ImageNet"])},
    ),
    Claim(
        "binary-near-half",
        "5.1, Table 1",
        "with two classes, every underconfidence attack ends within 0.05 of 0.5",
        lambda net: [abs(net(attack) - 0.5) < 0.05 for attack in UNDERCONFIDENCE],
        of=ON_BINARY,
    ),
    Claim(
        "binary-adaptive-lowest",
        "5.1, Table 1",
        "with two classes, Adaptive leaves the least confidence",
        lambda net: lowest(*led_by("Adaptive", net)),
        of=ON_BINARY,
    ),
    Claim(
        "chest-half-resists",
        "5.1",
        "on chest X-rays, 47 % of the images keep 0.5 or more under ConfSmooth (within 5 points)",
        lambda net: abs(net("ConfSmooth", "above_half") - 0.47) < 0.05,
        of={"": among(["EfficientNet-B0"], ["Chest X-ray"])},
    ),
    Claim(
        "vit-generally-above-cnn",
        "5.1, Table 1",
        "under the strongest of the three attacks, a ViT keeps more confidence than a CNN on the "
        "same data in most pairs",
        vit_above,
        MOST,
        of=VIT_AND_CNN,
    ),
    Claim(
        "vit-always-above-cnn",
        "6, Table 1",
        "under the strongest of the three attacks, a ViT keeps more confidence than a CNN on the "
        "same data in every pair",
        vit_above,
        of=VIT_AND_CNN,
    ),
    Claim(
        "ece-highest-under-confsmooth",
        "Table S1",
        "ConfSmooth leaves the highest ECE on most nets",
        lambda net: highest(*led_by("ConfSmooth", net, "ece")),
        MOST,
    ),
)


TABLE_2 = (
    Claim(
        "confsmooth-moves-most",
        "5.2, Table 2",
        "ConfSmooth has the largest perturbations (ΔW) of the four attacks",
        lambda net: highest(*led_by("ConfSmooth", net, "delta_w", FOUR)),
    ),
    Claim(
        "confsmooth-least-similar",
        "5.2, Table 2",
        "ConfSmooth has the lowest SSIM of the four attacks",
        lambda net: lowest(*led_by("ConfSmooth", net, "ssim", FOUR)),
    ),
    Claim(
        "pgd-most-similar",
        "5.2, Table 2",
        "PGD has the highest SSIM of the four attacks",
        lambda net: highest(*led_by("PGD", net, "ssim", FOUR)),
    ),
    Claim(
        "dropout-smaller-yet-less-similar",
        "5.2, Table 2",
        "Dropout's perturbations are smaller than PGD's, at a lower SSIM",
        lambda net: (
            (net("Dropout", "delta_w") < net("PGD", "delta_w"))
            & (net("Dropout", "ssim") < net("PGD", "ssim"))
        ),
    ),
    Claim(
        "adaptive-larger-than-pgd",
        "5.2, Table 2",
        "Adaptive's perturbations are larger than PGD's, at a lower SSIM",
        lambda net: (
            (net("Adaptive", "delta_w") > net("PGD", "delta_w"))
            & (net("Adaptive", "ssim") < net("PGD", "ssim"))
        ),
    ),
    Claim(
        "confsmooth-nearly-four-times-pgd",
        "5.4, Table 2",
        "ConfSmooth's perturbations are nearly four times PGD's (3.5 to 4 times)",
        lambda net: (
            (net("ConfSmooth", "delta_w") / net("PGD", "delta_w") > 3.5)
            & (net("ConfSmooth", "delta_w") / net("PGD", "delta_w") < 4.0)
        ),
    ),
    Claim(
        "confsmooth-avoids-salient-pixels",
        "5.2, Figure 1",
        "ConfSmooth's perturbations fall on pixels that matter less than chance would hit",
        lambda net: net("ConfSmooth", "salience") < net("chance", "salience"),
    ),
    Claim(
        "underconfidence-avoids-salient-pixels",
        "5.2, Figure 1",
        "each underconfidence attack falls on pixels that matter less than PGD's do",
        lambda net: [net(attack, "salience") < net("PGD", "salience") for attack in UNDERCONFIDENCE],
    ),
    Claim(
        "confsmooth-avoids-salient-pixels-most",
        "5.2, Figure 1",
        "ConfSmooth falls on pixels that matter less than those of the other three attacks",
        lambda net: lowest(*led_by("ConfSmooth", net, "salience", FOUR)),
    ),
)


def consistent(*defenses: str, tables: str) -> tuple[Claim, ...]:
    """Whether tables of confidence, accuracy and ECE fit one another, for some defenses."""

    def gap(net: Subject, defense: str, attack: str) -> Mean:
        """|MSP − accuracy|, the accuracy taken before, as attacks that keep the label leave it."""
        return abs(net.msp(defense, attack) - net.accuracy(defense, "before")).exactly()

    section, first = f"Tables {tables} (a check, not a sentence)", tables.partition(",")[0]
    return (
        Claim(
            f"ece-is-overconfidence-{first}",
            section,
            "without attack, ECE equals |MSP - accuracy| to 0.015: each net errs to one side",
            lambda net: [
                abs(net.ece(d, "before").exactly() - gap(net, d, "before")) < 0.015 for d in defenses
            ],
            separate=True,
        ),
        Claim(
            f"ece-at-least-gap-{first}",
            section,
            "ECE is nowhere below |MSP - accuracy|, which is so by definition if attacks "
            "keep the label (0.015 for rounding)",
            lambda net: [
                net.ece(d, a).exactly().exceeds(gap(net, d, a), by=-0.015)
                for d in defenses
                for a in ("before", *UNDERCONFIDENCE)
            ],
            separate=True,
        ),
    )


ATTACK_CLAIMS = (*TABLE_1, *TABLE_2, *consistent("Vanilla", tables="1, S1"))

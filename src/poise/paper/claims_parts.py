"""The words that claims are made of: the tables' names, and the comparisons that come up again."""

from __future__ import annotations

from poise.paper.judging import Case, Claim, Less
from poise.paper.terms import Difference, Ref, Same, Size, Term

UNDER = ("Dropout", "Adaptive", "ConfSmooth")  # the underconfidence attacks
BINARY = ("Breast Cancer Ultrasound", "BreastMNIST", "PneumoniaMNIST")  # data sets of two classes

MISCLASSIFICATION = ("AT", "TRADES", "RobustAugMix")  # trained against wrong answers
UAT = ("UAT-Gap", "UAT-Smooth")
TRAINED = (*MISCLASSIFICATION, "CAAT", *UAT)
DEFENSES = ("Vanilla", *TRAINED)
COUNTED = tuple(f"UAT-Smooth-{steps}" for steps in (1, 3, 5, 7, 10))  # Table S3


def cell(attack: str, metric: str = "msp", defense: str = "Vanilla") -> Ref:
    """A cell of an undefended net, unless told otherwise."""
    return Ref(defense, attack, metric)


def lowest(ours: Term, *rivals: Term) -> Case:
    """Ours is below each of them."""
    return tuple(Less(ours, rival) for rival in rivals)


def highest(ours: Term, *rivals: Term) -> Case:
    """Ours is above each of them."""
    return tuple(Less(rival, ours) for rival in rivals)


def near(term: Term, target: Term, tolerance: float) -> Less:
    """Less than the tolerance away from the target."""
    return Less(Size(Difference(term, target)), tolerance)


def msp(defense: str, attack: str = "ConfSmooth") -> Ref:
    """A defense's confidence."""
    return cell(attack, "msp", defense)


def accuracy(defense: str, attack: str = "PGD") -> Ref:
    """A defense's accuracy."""
    return cell(attack, "accuracy", defense)


def others(name: str) -> list[str]:
    """All defenses but this one."""
    return [defense for defense in DEFENSES if defense != name]


def ece(defense: str, attack: str) -> Ref:
    """A defense's ECE."""
    return cell(attack, "ece", defense)


def calibration_gap(defense: str, attack: str) -> Term:
    """|MSP − accuracy|, the accuracy taken before, as attacks that keep the label leave it."""
    return Size(Difference(cell(attack, "msp", defense), cell("before", "accuracy", defense)))


def consistent(*defenses: str, tables: tuple[str, ...]) -> tuple[Claim, ...]:
    """Whether tables of confidence, accuracy and ECE fit one another, for some defenses."""
    known = [(defense, attack) for defense in defenses for attack in ("before", *UNDER)]
    where = "Tables " + ", ".join(tables)
    return (
        Claim(
            name=f"ece-is-overconfidence-{tables[0]}",
            section=f"{where} (a check, not a sentence)",
            statement="without attack, ECE equals |MSP - accuracy| to 0.015: each net errs to one side",
            cases=tuple(
                (near(Same(cell("before", "ece", d)), Same(calibration_gap(d, "before")), 0.015),)
                for d in defenses
            ),
            tables=tables,
            separate=True,
        ),
        Claim(
            name=f"ece-at-least-gap-{tables[0]}",
            section=f"{where} (a check, not a sentence)",
            statement="ECE is nowhere below |MSP - accuracy|, which is so by definition if attacks "
            "keep the label (0.015 for rounding)",
            cases=tuple(
                (Less(Same(calibration_gap(d, a)), Same(cell(a, "ece", d)), by=-0.015),) for d, a in known
            ),
            tables=tables,
            separate=True,
        ),
    )

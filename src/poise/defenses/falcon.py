"""Fast adversarial calibration, FALCON (Tomani & Buettner 2021)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from poise import attacks
from poise.checks import check_count, check_number, settle
from poise.defenses.common import source, together
from poise.shapes import Images, Labels, Logits, Model, PerSample, Scalar
from poise.threat import Linf

BINS = 10  # of equal width, closed on the right


@dataclass(frozen=True)
class AdversarialCalibration:
    """CE(f(x), y) + entropy · L_S(f(x), y) + calibration · L_adv(f(x′), y).

    L_S is the cross-entropy from the uniform distribution over the wrong classes to the
    predictions among them. L_adv is half the mean squared difference between the confidence of x′
    and the accuracy of the images in its bin of confidence. x′ is one signed gradient step up the
    cross-entropy, of a length drawn for each batch from eps · {1, ..., levels} / levels.

    Assumed where the source leaves it open or ours differs: means over the batch where it has
    sums, both terms in every step and in one update, and no annealing of the weights. The bins are
    those of the whole batch; over several devices, of each one's part.

    Args:
        eps: the largest perturbation, in pixel units.
        levels: how many strengths there are.
        calibration: weight of L_adv.
        entropy: weight of L_S.
    """

    eps: float
    levels: int
    calibration: float
    entropy: float

    def __post_init__(self) -> None:
        settle(self)
        check_number("eps", self.eps, 0, 1, hint="it is in pixel units of [0, 1]")
        check_count("levels", self.levels, 1)
        check_number("calibration", self.calibration, 0)
        check_number("entropy", self.entropy, 0)

    def __call__(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Scalar:
        clean, moved = together(model, x, self.attacked(model, x, y, generator))
        spread = self.entropy * wrong_classes_apart(clean, y).mean()
        return F.cross_entropy(clean, y) + spread + self.calibration * miscalibration(moved, y)

    def attacked(
        self, model: Model, x: Images, y: Labels, generator: torch.Generator | None = None
    ) -> Images:
        """The images x′."""
        generator = source(generator)
        drawn = torch.randint(self.levels, (), generator=generator, device=generator.device)
        length = self.eps * (1 + int(drawn)) / self.levels
        # A step of 1 into the box keeps the sign of every pixel that has room to move.
        way = (attacks.fgsm(eps=1.0)(model, x, y) - x).sign()
        return Linf(length).project(x + length * way, x)


def wrong_classes_apart(logits: Logits, y: Labels) -> PerSample:
    """−1/(K−1) · Σ_{j≠y} log(p_j / Σ_{i≠y} p_i), at least log(K−1): where the wrong classes are alike.

    >>> z = torch.tensor([[5.0, 0.0, 0.0]])
    >>> round(wrong_classes_apart(z, torch.tensor([0])).item(), 4)  # log 2
    0.6931
    """
    of_y = F.one_hot(y, logits.shape[1]).bool()
    among = logits.masked_fill(of_y, float("-inf")).logsumexp(dim=1, keepdim=True)
    return (among - logits).masked_fill(of_y, 0).sum(dim=1) / (logits.shape[1] - 1)


def miscalibration(logits: Logits, y: Labels) -> Scalar:
    """½ · mean of (confidence − accuracy in its bin)²; the accuracies carry no gradient.

    >>> z = torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()
    >>> miscalibration(z, torch.tensor([0, 1]))  # ½ · (¾ − ½)²
    tensor(0.0313)
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    bins = ((confidence.detach() * BINS).ceil() - 1).clamp(0, BINS - 1).long()
    member = F.one_hot(bins, BINS).to(confidence.dtype)
    right = (predicted == y).to(confidence.dtype)
    accuracy = (right @ member) / member.sum(dim=0).clamp_min(1)
    return (confidence - accuracy[bins]).square().mean() / 2


def falcon(
    *, eps: float = 8 / 255, levels: int = 10, calibration: float = 1.0, entropy: float = 0.01
) -> AdversarialCalibration:
    """Fast adversarial calibration: confident as far as right, also under FGSM (Tomani & Buettner 2021).

    The two weights are ours: theirs go with sums over the batch and were searched for each data set.

    >>> falcon(eps=0.1)
    AdversarialCalibration(eps=0.1, levels=10, calibration=1.0, entropy=0.01)
    """
    return AdversarialCalibration(eps, levels, calibration, entropy)

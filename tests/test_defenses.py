"""Loss values by hand and by outside implementations, in float64."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from defense_nets import (
    BIAS,
    EPS,
    GREY,
    THRICE,
    WEIGHT,
    ZERO,
    Change,
    Rows,
    close,
    generator,
    linear,
    smooth_batch,
    smooth_net,
)
from nets import images
from poise import InputError, attacks, defenses
from poise.defenses.caat import CalibrationTraining
from poise.defenses.common import jsd, kl
from poise.defenses.dca import difference
from poise.defenses.mixup import Mixup
from poise.defenses.robust_augmix import RobustAugMix


def test_vanilla_is_cross_entropy():
    close(defenses.vanilla()(linear(math.log(3)), GREY, ZERO), -math.log(3 / 4))


def test_adversarial_training_is_cross_entropy_at_the_worst_corner():
    loss = defenses.adversarial_training(eps=EPS, step=EPS)(linear(math.log(3)), GREY, ZERO, generator())
    close(loss, math.log(2))


@pytest.mark.parametrize("seed", range(4))
def test_trades_by_hand(seed):
    """KL((1/2, 1/2)‖(1/4, 3/4)) = ½ log 2 + ½ log 2/3 = ½ log 4/3, at either corner."""
    loss = defenses.trades(eps=EPS, step=EPS)(linear(), *THRICE, generator(seed))
    close(loss, math.log(2) + 6 * 0.5 * math.log(4 / 3))


def test_trades_without_steps_is_cross_entropy():
    """Which the factory refuses: see test_defense_contract.py."""
    loss = replace(defenses.trades(), steps=0)(linear(math.log(3)), GREY, ZERO)
    close(loss, -math.log(3 / 4))


def test_trades_starts_at_small_normal_noise_and_stays_in_the_ball():
    x = 0.2 + 0.6 * images(4, shape=(3, 32, 32))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    start = defenses.trades(step=1e-12, steps=1).attacked(net, x, torch.zeros(4, dtype=torch.long)) - x
    assert stats.kstest(start.flatten().numpy(), stats.norm(scale=1e-3).cdf).pvalue > 1e-3
    moved = defenses.trades(eps=0.02, step=0.015).attacked(net, x, torch.zeros(4, dtype=torch.long)) - x
    assert moved.abs().max() == pytest.approx(0.02, rel=1e-5)


def test_robust_augmix_by_hand():
    """Clean (1/2, 1/2), adversarial (1/4, 3/4), their mean (3/8, 5/8)."""
    half = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    other = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    loss = defenses.robust_augmix(eps=EPS, step=EPS)(linear(), *THRICE, generator())
    close(loss, math.log(2) + 12 * (half + other) / 2)


def test_robust_augmix_with_its_augmented_branch_has_three_predictions():
    @dataclass(frozen=True)
    class Brighten:
        def __call__(self, x, *, generator=None):
            return (x + 0.1 * WEIGHT.sign()).clamp(0, 1)  # to (3/4, 1/4)

    loss = RobustAugMix(Change(0.0), 2.0, Brighten())(linear(), GREY, ZERO, generator())
    far = 1 / (1 + math.exp(-BIAS))
    p, q, r = (0.5, 0.5), (0.75, 0.25), (far, 1 - far)
    mean = np.mean([p, q, r], axis=0)
    close(loss, math.log(2) + 2.0 * np.mean([rel_entr(row, mean).sum() for row in (p, q, r)]))


def test_caat_is_the_sum_of_the_attacks_cross_entropies():
    x, y = smooth_batch()
    parts = [Change(0.5), Change(0.9, uses_labels=False)]
    net = smooth_net().eval()
    loss = CalibrationTraining(tuple(parts))(net, x, y)
    close(loss, (F.cross_entropy(net(x * 0.5), y) + F.cross_entropy(net(x * 0.9), y)).item())
    assert parts[0].given[0][1] is y and parts[1].given[0][1] is None
    with pytest.raises(InputError, match="attacks"):
        CalibrationTraining(())


def test_caat_attacks_under_and_if_asked_over():
    x, _ = smooth_batch()
    net = smooth_net().eval()
    under, over = defenses.caat(eps=EPS, step=EPS / 5, over=True).attacks
    assert under == attacks.dropout(eps=EPS, step=EPS / 5, steps=10, keep_fraction=0.05)
    confidence = [
        net(image).softmax(dim=1).amax(dim=1).mean() for image in (under(net, x), x, over(net, x))
    ]
    assert confidence[0] < confidence[1] < confidence[2]
    inner = (x > EPS) & (x < 1 - EPS)  # where no pixel stays because of the box
    assert 0 < (over(net, x) == x)[inner].double().mean() < 0.3  # a tenth is dropped


def test_label_smoothing_by_hand_and_as_torch_has_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    loss = defenses.label_smoothing(smoothing=0.3)(lambda x: logits, GREY, ZERO)
    close(loss, -(0.8 * math.log(0.5) + 0.1 * math.log(0.3) + 0.1 * math.log(0.2)))
    x, y = smooth_batch()
    net = smooth_net()
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(net(x), y)
    close(defenses.label_smoothing()(net, x, y), expected.item())


def test_mixup_is_that_of_torchvision(monkeypatch):
    x, y = smooth_batch()
    monkeypatch.setattr(Mixup, "draw", lambda self, y, generator: (0.3, torch.arange(len(y)).roll(1)))
    outside = v2.MixUp(num_classes=4)
    monkeypatch.setattr(outside, "make_params", lambda inputs: {"lam": 0.3})
    mixed, labels = outside(x.clone(), y)
    net = smooth_net().eval()
    close(defenses.mixup()(net, x, y), F.cross_entropy(net(mixed), labels.double()).item())


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_draws_from_beta_and_any_order(alpha):
    y, shared = torch.arange(3), generator(7)
    drawn = [defenses.mixup(alpha=alpha).draw(y, shared) for _ in range(600)]
    # Chance of a false alarm: 1 in 10,000 each.
    assert stats.kstest([share for share, _ in drawn], stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    counts = np.unique([order.tolist() for _, order in drawn], axis=0, return_counts=True)[1]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-4


def test_dca_by_hand():
    """Confidences .9, .6, .5 with the first two right: |2/3 − 2/3| = 0; one right: |1/3 − 2/3|."""
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    assert difference(p.log(), torch.tensor([0, 1, 1])).item() == pytest.approx(0)
    close(difference(p.log(), torch.tensor([0, 0, 1])), 1 / 3)
    loss = defenses.dca(weight=5.0)(lambda x: p.log(), GREY, torch.tensor([0, 0, 1]))
    close(loss, -(math.log(0.9) + math.log(0.4) + math.log(0.5)) / 3 + 5 / 3)


def test_dca_lowers_a_confidence_that_is_too_high_and_raises_one_too_low():
    for y, sign in ((torch.tensor([0, 1]), 1), (torch.tensor([0, 0]), -1)):  # accuracy .5 and 1
        logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log().requires_grad_()
        difference(logits, y).backward()
        assert (logits.grad[:, 0] * sign > 0).all()


def test_kl_and_jsd_are_those_of_scipy():
    p, q, r = (torch.randn(5, 4, generator=generator(s), dtype=torch.float64).softmax(1) for s in range(3))
    assert kl(p.log(), q.log()).tolist() == pytest.approx(rel_entr(p.numpy(), q.numpy()).sum(1).tolist())
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
    assert jsd(p.log() + 3, q.log() - 2).tolist() == pytest.approx(expected)
    mean = (p + q + r) / 3
    three = sum(rel_entr(part.numpy(), mean.numpy()).sum(1) for part in (p, q, r)) / 3
    assert jsd(p.log(), q.log(), r.log()).tolist() == pytest.approx(three.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergences_of_saturated_logits_are_finite_and_so_are_their_gradients(dtype):
    a = torch.tensor([[100.0, -100.0, 0.0], [-100.0, 100.0, 0.0]], dtype=dtype).requires_grad_()
    b = torch.tensor([[-100.0, 100.0, 0.0], [-100.0, 100.0, 0.0]], dtype=dtype).requires_grad_()
    apart, near = kl(a.log_softmax(1), b.log_softmax(1)), jsd(a, b)
    assert apart.tolist() == pytest.approx([200.0, 0.0], abs=1e-6)
    assert near.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    (apart.sum() + near.sum()).backward()
    assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()


@pytest.mark.parametrize("name", ["trades", "robust-augmix", "ccat"])
@pytest.mark.parametrize("steps", [1, 3])
def test_logits_of_plus_and_minus_100_give_no_nan(name, steps):
    """A net that answers 100 for one class and −100 for the others, at pixels of 1 and 0."""
    x = torch.eye(3)[torch.tensor([0, 1, 2, 0])].reshape(4, 1, 1, 3)
    net, shift = Rows(3), nn.Parameter(torch.zeros(3))
    loss = defenses.build(name, steps=steps)(lambda x: net(x) + shift, x, torch.tensor([0, 0, 1, 2]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(shift.grad).all()
    assert net(x).unique().tolist() == [-100, 100]

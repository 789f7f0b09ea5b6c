"""Gradients by finite differences in float64, the attacked images held fixed."""

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.special import rel_entr

from defense_nets import (
    GREY,
    ZERO,
    Change,
    FixedFalcon,
    FixedTrades,
    along,
    directions,
    generator,
    smooth_batch,
    smooth_net,
)
from poise import defenses
from poise.defenses.caat import CalibrationTraining
from poise.defenses.robust_augmix import RobustAugMix
from poise.defenses.uat_mix import MixedTraining
from poise.threat import Linf


@dataclass(frozen=True)
class Soften:
    def __call__(self, x, *, generator=None):
        return x * 0.8 + 0.05


FIXED = {
    "vanilla": defenses.vanilla(),
    "at": defenses.AdversarialTraining(Change(0.6)),
    "trades": FixedTrades(6.0, Linf(0.1), 0.1, 1),
    "robust-augmix": RobustAugMix(Change(0.6), 12.0),
    "robust-augmix-augment": RobustAugMix(Change(0.6), 12.0, Soften()),
    "ccat": replace(defenses.ccat(rho=2.0), attack=Change(0.6)),
    "caat": CalibrationTraining((Change(0.6), Change(0.9))),
    "uat-mix": MixedTraining(Change(0.6), Change(0.9), 0.5),
    "label-smoothing": defenses.label_smoothing(),
    "mixup": defenses.mixup(),
    "falcon": FixedFalcon(0.1, 4, 2.0, 0.5),
    "dca": defenses.dca(),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_that_of_finite_differences(name, seed):
    net, h = smooth_net(seed), 1e-5
    way = directions(net, seed)
    high, low = (FIXED[name](along(net, way, s * h), *smooth_batch(), generator()).item() for s in (1, -1))
    FIXED[name](net, *smooth_batch(), generator()).backward()
    slope = sum((p.grad * d).sum().item() for p, d in zip(net.parameters(), way, strict=True))
    assert slope == pytest.approx((high - low) / (2 * h), rel=1e-6)


def test_trades_gradient_flows_through_both_predictions():
    """At β = 1: d/dz KL(p‖q) = p ⊙ (log p/q − KL), and d/dz′ = q − p."""
    z = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    defense = FixedTrades(1.0, Linf(0.1), 0.1, 1)
    defense(lambda x: z, GREY, ZERO).backward()
    p, q = z.detach()[:1].softmax(1), z.detach()[1:].softmax(1)
    divergence = rel_entr(p.numpy(), q.numpy()).sum()
    clean = p - torch.tensor([[1.0, 0.0, 0.0]]) + p * ((p / q).log() - divergence)
    torch.testing.assert_close(z.grad, torch.cat([clean, q - p]))

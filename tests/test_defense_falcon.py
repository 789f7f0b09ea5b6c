"""Fast adversarial calibration: its terms by hand, its images by what is known of them."""

import math

import numpy as np
import torch
from scipy import stats
from torch import nn

from defense_nets import GREY, WEIGHT, ZERO, close, generator, linear, smooth_batch, smooth_net
from poise import defenses
from poise.defenses.falcon import AdversarialCalibration, miscalibration, wrong_classes_apart


def test_falcon_s_terms_by_hand():
    """Bins (.7, .8]: .75 twice, one right; (.9, 1]: .95 right. A confidence of 1 is in the last bin."""
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.05, 0.95]], dtype=torch.float64)
    close(miscalibration(p.log(), torch.tensor([0, 0, 1])), 0.5 * (0.25**2 + 0.25**2 + 0.05**2) / 3)
    sure = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], dtype=torch.float64)
    close(miscalibration(sure, torch.tensor([0, 0])), 0.5 * 0.25)
    z = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    close(wrong_classes_apart(z, ZERO), -0.5 * (math.log(0.6) + math.log(0.4)))
    close(wrong_classes_apart(z + 50, torch.tensor([2])), -0.5 * (math.log(5 / 8) + math.log(3 / 8)))


def test_falcon_s_bins_are_closed_on_the_right():
    """Confidences 1/2 (right) and .45 (wrong) share the bin (.4, .5], whose accuracy is 1/2."""
    half = torch.tensor([0.0, -math.log(2), -math.log(2)], dtype=torch.float64)
    z = torch.stack([half, torch.tensor([0.45, 0.3, 0.25], dtype=torch.float64).log()])
    assert z.softmax(dim=1)[0, 0] == 0.5
    close(miscalibration(z, torch.tensor([0, 1])), 0.5 * 0.05**2 / 2)


def test_falcon_adds_its_terms():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)  # clean, then attacked
    defense = AdversarialCalibration(eps=0.1, levels=4, calibration=2.0, entropy=0.5)

    class Given(nn.Module):
        def forward(self, x):
            return p.log() if len(x) == 2 else p[:1].log() + 0 * x.flatten(1)[:, :3]

    apart = -0.5 * (math.log(0.6) + math.log(0.4))
    loss = defense(Given(), GREY, ZERO, generator())
    close(loss, math.log(2) + 0.5 * apart + 2.0 * 0.5 * 0.8**2)


def test_falcon_s_images_take_signed_steps_of_one_length_a_batch():
    n, source, found = 5, generator(), []
    x, y = GREY.expand(n, -1, -1, -1), ZERO.expand(n)
    defense = defenses.falcon(eps=0.2, levels=4)
    for _ in range(1000):
        lengths = ((defense.attacked(linear(), x, y, source) - x) * -WEIGHT.sign()).flatten(1)
        torch.testing.assert_close(lengths, lengths[:1, :1].expand(n, 4))  # every image and pixel alike
        found.append(lengths[0, 0])
    level = (torch.stack(found) / 0.05).round()
    torch.testing.assert_close(torch.stack(found), 0.05 * level)
    counts = np.unique(level.numpy(), return_counts=True)
    assert counts[0].tolist() == [1, 2, 3, 4] and stats.chisquare(counts[1]).pvalue > 1e-4


def test_falcon_s_images_stay_in_the_box():
    x, y = smooth_batch(8)
    moved = defenses.falcon(eps=0.3).attacked(smooth_net(), x, y)
    assert moved.min() == 0 and moved.max() == 1 and ((moved - x).abs() <= 0.3 + 1e-12).all()

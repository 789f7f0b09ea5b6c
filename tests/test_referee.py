"""Numbers at equal scale: multiplying the logits changes the raw ones and nothing else."""

import pytest
import torch
from torch import nn

from nets import Linear, conv_net, images
from poise.data import ImageSet
from poise.paper.referee import SLACK, referee
from poise.recalibration import Recalibrated, Scale

CLASSES = tuple("abcde")


def noisy_set(net, n, seed, wrong=0.25):
    """Images whose labels are the net's answers, but for a share that are drawn at random."""
    x = (images(n, seed) * 255).round().to(torch.uint8)
    with torch.no_grad():
        y = net(x.float() / 255).argmax(dim=1)
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(5, (n,), generator=generator)
    y = torch.where(torch.rand(n, generator=generator) < wrong, other, y)
    return ImageSet("noisy", x, y, CLASSES)


@pytest.fixture(scope="module")
def rows():
    net = conv_net(scale=4.0)
    test, held = noisy_set(net, 60, 1), noisy_set(net, 200, 2)
    return [referee(Recalibrated(net, Scale(k)), test, held, eps=0.01, steps=5) for k in (1.0, 8.6)]


def test_raw_confidence_under_attack_is_gamed_by_a_factor_on_the_logits(rows):
    plain, scaled = rows
    assert scaled["raw"] > plain["raw"] + 0.05


def test_the_others_are_not(rows):
    plain, scaled = rows
    for column in ("accuracy", "stable", "bound", "at_k", "clean_at_k", "matched"):
        assert scaled[column] == pytest.approx(plain[column], abs=0.01), column
    assert scaled["k"] == pytest.approx(plain["k"] / 8.6, rel=1e-4)


def test_columns_by_hand_for_a_net_that_no_attack_can_move():
    class Still(nn.Module):
        """Answers 0 with confidence .8 to dark images and .6 to bright ones; flat everywhere."""

        def forward(self, x):
            bright = (x.mean(dim=(1, 2, 3), keepdim=False) > 0.5).to(x.dtype)
            lead = torch.log(torch.tensor(4.0)) * (1 - bright) + torch.log(torch.tensor(1.5)) * bright
            return torch.stack([lead, torch.zeros_like(lead)], dim=1) + 0 * x.sum(dim=(1, 2, 3))[:, None]

    pixels = torch.tensor([10, 10, 10, 250], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    test = ImageSet("still", pixels, torch.tensor([0, 0, 1, 0]), ("a", "b"))
    row = referee(Still(), test, test, eps=0.01, steps=2)
    assert row["accuracy"] == row["pgd_accuracy"] == 0.75
    assert row["stable"] == row["bound"] == 1.0
    assert row["before"] == row["after_worst"] == pytest.approx(0.75)  # (.8 + .8 + .8 + .6) / 4
    assert row["raw"] == pytest.approx(2.2 / 3)  # of the right ones: .8, .8, .6
    assert row["ece"] == row["ece_after"] == pytest.approx((3 * (0.8 - 2 / 3) + (1 - 0.6)) / 4, abs=1e-6)
    assert all(row[f"after_{name}"] == pytest.approx(0.75) for name in ("dropout", "adaptive", "auto"))


def test_where_no_answer_is_right_there_are_no_numbers_of_right_answers():
    net = Linear(torch.ones(1, 8, 8) / 8, bias=-0.1)
    wrong = ImageSet(
        "two", torch.full((4, 1, 8, 8), 8, dtype=torch.uint8), torch.ones(4).long(), ("a", "b")
    )
    row = referee(net, wrong, wrong, eps=0.01, steps=1)
    assert row["accuracy"] == 0 and row["before"] > 0.5
    assert all(
        row[name] is None for name in ("raw", "stable", "bound", "k", "at_k", "clean_at_k", "matched")
    )


def test_a_perfect_attack_on_two_classes_is_not_accused():
    """Every label can be flipped, so R = 0 and the bound is 1/2; `auto` stops a margin above it."""
    net = Linear(torch.ones(1, 8, 8) / 8, bias=-0.1)
    pixels = torch.full((8, 1, 8, 8), 8, dtype=torch.uint8)
    data = ImageSet("two", pixels, torch.zeros(8).long(), ("a", "b"))
    x, y = next(iter(data))
    assert (net(x).argmax(dim=1) == y).all()
    found = referee(net, data, data, eps=0.5)
    assert found["stable"] == 0 and 0.5 < found["raw"] < 0.5002
    assert found["raw"] <= found["bound"] + SLACK

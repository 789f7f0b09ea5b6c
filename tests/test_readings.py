"""Readings of the paper by name: which step is kept, what Dropout drops, what others measured."""

import itertools

import numpy as np
import pytest
import torch

import poise
from nets import conv_net, images, predictions
from poise import InputError
from poise.attacks import adaptive, confsmooth, dropout, dropout_accumulated
from poise.draws import Draw
from poise.rules import step_back
from poise.shapes import Point
from poise.threat import Linf, Sparse


@pytest.fixture(scope="module")
def resnet20(shared_data):
    arrays = np.load(shared_data / "cifar10_exact_subset.npz")
    x = torch.from_numpy(arrays["x_test"][:64]).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(arrays["y_test"][:64]).long()
    file = shared_data / "weights/cifar10_resnet20.pt"
    return poise.models.load("cifar-resnet20", shape=(3, 32, 32), weights=file), x, y


@pytest.mark.parametrize(
    ("attack", "msp", "kept", "change"),
    [  # of an independent implementation, 64 images, S = .03, 20 steps of 5/255; draws differ, hence .03
        (dropout(), 0.722, 1.0, 0.003),
        (dropout_accumulated(accept="label"), 0.926, 1.0, 0.001),
        (dropout_accumulated(keep_fraction=0.95), 0.9998, 0.0, 0.019),
    ],
    ids=["each step's change", "accumulated, label kept", "the default before"],
)
def test_dropout_reaches_what_was_measured_elsewhere(resnet20, attack, msp, kept, change):
    model, x, y = resnet20
    r = poise.evaluate(model, [(x, y)], attack)
    assert poise.metrics.confidence(r.attacked) == pytest.approx(msp, abs=0.03)
    assert poise.metrics.label_kept(r.clean, r.attacked) == pytest.approx(kept, abs=0.02)
    assert float(r.wasserstein.mean()) == pytest.approx(change, abs=6e-4)


def test_dropout_moves_one_pixel_in_twenty_a_step_and_keeps_what_it_moved():
    shape = (3, 16, 16)
    net, x = conv_net(0, shape=shape), images(4, 0, shape=shape).clamp(0.2, 0.8)
    points = [at.x for at in dropout(eps=0.1, step=0.01, steps=12).path(net, x)]
    moved = torch.cat([(b != a).double().flatten(1).mean(1) for a, b in itertools.pairwise(points)])
    taken = moved[moved > 0]  # the others were taken back
    assert len(taken) >= 12 and (taken - 0.05).abs().max() < 0.04  # 768 draws an image: 5 sigma
    shares = [(at != x).double().mean() for at in points]
    assert all(a <= b for a, b in itertools.pairwise(shares)) and shares[-1] > 0.1


def test_a_sparse_direction_is_the_balls_own_where_it_is_not_0():
    grad, draw = (
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        Draw.of(images(2, 0)),
    )
    way = Sparse(Linf(0.1), 0.25).steepest(grad, draw)
    assert torch.equal(way, torch.where(way != 0, grad.sign(), 0.0))
    assert 0.2 < (way != 0).double().mean() < 0.3
    assert not torch.equal(way, Sparse(Linf(0.1), 0.25).steepest(grad, draw.at(1)))


def test_the_listing_takes_back_what_does_not_improve():
    """Four images: better, worse with the label kept, better with the label lost, as before."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    x, y, size = torch.zeros(4, 1, 1, 1), torch.zeros(4).long(), torch.ones(4)
    at = Point(x, y, logits[[0, 0, 0, 0]], torch.tensor([1.0, 1.0, 1.0, 1.0]), None)
    new = Point(x, y, logits, torch.tensor([0.5, 1.5, 0.5, 1.0]), None)
    kept, then = step_back(1.1, 0.0, "label")(at, new, size)
    assert kept.tolist() == [True, True, False, True] and then.tolist() == pytest.approx([1.1, 1, 0.5, 1])
    kept, then = step_back(1.1, 0.0, "improving")(at, new, size)
    assert kept.tolist() == [True, False, False, False] and then.tolist() == pytest.approx([1.1, 1, 0.5, 1])


@pytest.mark.parametrize("factory", [adaptive, confsmooth])
def test_the_listings_loss_never_rises_and_its_label_stays(factory):
    net, x = conv_net(1, dtype=torch.float64), images(8, 1, dtype=torch.float64)
    path = list(factory(eps=0.2, keep="last", accept="improving").path(net, x))
    assert all((b.loss <= a.loss).all() for a, b in itertools.pairwise(path))
    assert torch.equal(predictions(net, path[-1].x), predictions(net, x))


def test_other_words_are_refused():
    with pytest.raises(InputError, match="accept"):
        adaptive(accept="always")
    with pytest.raises(InputError, match="accept"):
        dropout(accept="improving")

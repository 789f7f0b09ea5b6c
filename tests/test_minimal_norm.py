"""The special tests of C&W and DeepFool, which look for the nearest misclassified image.

What they owe their caller as every attack does is in test_attack_contract.py and test_bad_input.py.
Their rivals are foolbox's L2CarliniWagnerAttack, L2DeepFoolAttack and LinfDeepFoolAttack.
"""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from nets import Counting, Linear, conv_net, digits_net, images, predictions
from poise.attacks.carlini import cw
from poise.attacks.deepfool import deepfool

ORDER = {"l2": 2.0, "linf": math.inf}
ATTACKS = {
    "cw": cw(steps=20, binary_search=3, lr=0.03),
    "deepfool l2": deepfool(),
    "deepfool linf": deepfool(norm="linf"),
    "deepfool l1": deepfool(norm="l1"),
}
SEEDS = range(3)
each_seed = pytest.mark.parametrize("seed", SEEDS)
each_norm = pytest.mark.parametrize("norm", ORDER)
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def length(delta, norm="l2"):
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=ORDER[norm], dim=1)


def lost(net, x, y):
    """Where the label is lost, by a forward of its own at another batch size."""
    return torch.cat([predictions(net, part) for part in x.split(7)]) != y


def digits():
    """A net of digits, and 60 test images that it gets right."""
    net, x, y = digits_net()
    right = (predictions(net, x) == y).nonzero()[:60, 0]
    return net, x[right], y[right]


def linear_case(seed, *, classes=2):
    """A linear net in float64, grey images, and their distance to the nearest boundary by norm.

    All are near enough for [0, 1] to play no part.
    """
    numbers = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 48, generator=numbers))
        net[1].bias.copy_(-0.5 * net[1].weight.sum(dim=1))  # grey images lie on every boundary
    x = 0.4 + 0.2 * torch.rand(16, 3, 4, 4, generator=numbers, dtype=torch.float64)
    net.requires_grad_(False)
    z, weight = net(x), net[1].weight
    y = z.argmax(dim=1)
    across = weight[y][:, None] - weight  # (n, k, 48)
    lead = (z.gather(1, y[:, None]) - z).scatter(1, y[:, None], math.inf)
    dual = {"l2": across.norm(dim=2), "linf": across.abs().sum(dim=2)}
    return net, x, y, {norm: (lead / size).amin(dim=1) for norm, size in dual.items()}


@each_seed
@each_norm
@pytest.mark.parametrize("classes", [2, 7])
def test_deepfool_crosses_a_linear_boundary_in_one_step(classes, norm, seed):
    net, x, y, distance = linear_case(seed, classes=classes)
    counting = Counting(net)
    x_adv = deepfool(norm=norm, overshoot=0.02)(counting, x, y)
    assert lost(net, x_adv, y).all()
    torch.testing.assert_close(length(x_adv - x, norm), 1.02 * distance[norm], rtol=1e-9, atol=1e-12)
    assert counting.forwards == 2 and counting.backwards == classes - 1


@each_norm
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deepfool_without_overshoot_does_not_end_in_a_tie(dtype, norm):
    net, x, y, distance = linear_case(0)
    net, x = copy.deepcopy(net).to(dtype), x.to(dtype)
    x_adv = deepfool(norm=norm, overshoot=0.0)(net, x, y)
    assert (predictions(net, x_adv) != y).all()
    torch.testing.assert_close(length(x_adv - x, norm), distance[norm], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("classes", "seed"), [(2, 1), (7, 0)])
def test_cw_comes_near_the_distance_to_a_linear_boundary(classes, seed):
    net, x, y, distance = linear_case(seed, classes=classes)
    x_adv = cw()(net, x, y)
    assert lost(net, x_adv, y).all()
    ratio = length(x_adv - x) / distance["l2"]
    assert (ratio > 1 - 1e-9).all() and ratio.median() < 1.01
    assert (ratio < 1.05).float().mean() > 0.75 and ratio.max() < 1.15  # the worst begin on the boundary


def test_cw_has_the_lead_that_is_asked_for():
    net, x, y, _ = linear_case(0, classes=7)
    for confidence in (0.5, 2.0):
        x_adv = cw(steps=100, binary_search=6, confidence=confidence)(net, x, y)
        with torch.no_grad():
            z = net(x_adv)
        lead = z.scatter(1, y[:, None], -math.inf).amax(dim=1) - z.gather(1, y[:, None])[:, 0]
        assert (lead > confidence - 1e-9).all() and lead.max() < 1.5 * confidence


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_cw_is_the_same_for_negative_and_positive_logits(shift):
    net, x, y, _ = linear_case(0, classes=7)
    attack = ATTACKS["cw"]
    torch.testing.assert_close(attack(lambda x: net(x) + shift, x, y), attack(net, x, y), rtol=0, atol=1e-9)


def foolbox_adversarials(make, net, x, y):
    import foolbox

    with torch.random.fork_rng(devices=[]):
        adversarials = make(foolbox.attacks)(foolbox.PyTorchModel(net, (0, 1)), x, y, epsilons=None)
    return adversarials[1]


def sizes(net, x, y, ours, theirs, norm):
    """Success no less than theirs, and the lengths of both where both succeed."""
    ok, theirs_ok = lost(net, ours, y), lost(net, theirs, y)
    assert ok.sum() >= theirs_ok.sum() > 50
    both = ok & theirs_ok
    return length(ours - x, norm)[both], length(theirs - x, norm)[both]


@each_norm
def test_deepfool_against_foolbox(norm):
    net, x, y = digits()
    name = {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[norm]
    theirs = foolbox_adversarials(lambda attacks: getattr(attacks, name)(steps=50), net, x, y)
    ours, theirs = sizes(net, x, y, deepfool(norm=norm)(net, x, y), theirs, norm)
    # They add 1e-4 to every step, so that ours are shorter, if not by much.
    assert abs(ours.median() / theirs.median() - 1) < 0.005
    assert ((ours / theirs - 1).abs() < 0.02).float().mean() > 0.9


def both_cw(net, x, y):
    """Our C&W and foolbox's, with as many gradients and the same steps and constants."""
    options = {"steps": 60, "initial_const": 0.1, "stepsize": 0.02, "binary_search_steps": 5}
    theirs = foolbox_adversarials(
        lambda attacks: attacks.L2CarliniWagnerAttack(**options, abort_early=False), net, x, y
    )
    return cw(steps=60, initial=0.1, lr=0.02, binary_search=5)(net, x, y), theirs


def test_cw_against_foolbox():
    net, x, y = digits()
    found, theirs = both_cw(net, x, y)
    ours, theirs = sizes(net, x, y, found, theirs, "l2")
    assert ours.median() < 0.9 * theirs.median()  # half the pixels are black, and theirs cannot move
    assert length(found - x).mean() < length(deepfool()(net, x, y) - x).mean()


def test_cw_against_foolbox_where_all_pixels_are_grey():
    net, x, y = digits()
    x = 0.25 + 0.5 * x
    y = predictions(net, x)
    found, theirs = both_cw(net, x, y)
    ours, theirs = sizes(net, x, y, found, theirs, "l2")
    assert ours.median() < 1.01 * theirs.median() and ours.mean() < 1.02 * theirs.mean()


@each_seed
def test_black_and_white_pixels_move(seed):
    x = images(4, seed).round().double()  # all pixels at exactly 0 or 1
    numbers = torch.Generator().manual_seed(seed)
    weight = torch.randn(x.shape[1:], generator=numbers, dtype=torch.float64)
    weight = weight.abs() * (2 * x[0] - 1)  # class 0 is left by moving every pixel of x[0] inwards
    net = Linear(weight, bias=float(-(weight * x[0]).sum() + 0.2 * weight.abs().sum()))
    x, exact = x[:1], 0.2 * weight.abs().sum() / weight.norm()
    for attack, close in ((cw(), 0.05), (deepfool(), 0.021), (deepfool(norm="linf"), math.inf)):
        x_adv = attack(net, x)
        assert lost(net, x_adv, torch.tensor([0])).all()
        assert ((x_adv - x).abs() > 1e-3).double().mean() > 0.9
        assert length(x_adv - x).item() == pytest.approx(exact.item(), rel=close)


@every_attack
@each_seed
def test_misclassified_in_the_box_and_without_labels_the_prediction_is_meant(seed, attack):
    net, x = conv_net(seed), images(8, seed + 10)
    y = predictions(net, x)
    x_adv = attack(net, x)
    assert torch.equal(x_adv, attack(net, x, y))
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (predictions(net, x_adv) != y).all()


@every_attack
def test_images_that_are_wrong_already_are_returned_as_they_are(attack):
    net, x = conv_net(dtype=torch.float64), images(8, dtype=torch.float64)
    y = predictions(net, x)
    wrong = torch.arange(8) % 2 == 0
    x_adv = attack(net, x, torch.where(wrong, (y + 1) % 5, y))
    assert torch.equal(x_adv[wrong], x[wrong])
    torch.testing.assert_close(x_adv[~wrong], attack(net, x)[~wrong], rtol=0, atol=1e-9)
    assert (length(x_adv - x)[~wrong] > 0).all()


@pytest.mark.parametrize("make", [cw, deepfool])
def test_points_beyond_eps_are_not_returned(make):
    net, x = conv_net(), images(12)
    options = {"steps": 20, "lr": 0.03, "binary_search": 3} if make is cw else {}
    free = make(**options)(net, x)
    far = length(free - x)
    eps = far.median().item() * 1.001
    bounded = make(**options, eps=eps)(net, x)
    assert torch.equal(bounded, torch.where((far <= eps)[:, None, None, None], free, x))
    assert torch.equal(make(**options, eps=0.0)(net, x), x)


def test_eps_of_deepfool_is_in_its_norm():
    net, x = conv_net(), images(12)
    far = length(deepfool(norm="linf")(net, x) - x, "linf")
    eps = far.median().item() * 1.001
    moved = length(deepfool(norm="linf", eps=eps)(net, x) - x, "linf") > 0
    assert torch.equal(moved, far <= eps)


@every_attack
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_keep_their_dtype(attack, dtype):
    net, x = conv_net(dtype=dtype), images(6, dtype=dtype)
    x_adv = attack(net, x)
    assert x_adv.dtype == dtype and ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (predictions(net, x_adv) != predictions(net, x)).all()


class Flat(nn.Module):
    """One class leads everywhere, and the slope is zero."""

    def forward(self, x):
        return torch.stack([0 * x.flatten(1).sum(dim=1) + 3, 0 * x.flatten(1).sum(dim=1)], dim=1)


@every_attack
def test_where_there_is_no_slope_there_is_no_step(attack):
    x = images(4)
    assert torch.equal(attack(Flat(), x), x)


@each_norm
def test_fewer_candidates_never_find_a_nearer_boundary_of_a_linear_net(norm):
    net, x, y, distance = linear_case(0, classes=7)
    far = [length(deepfool(norm=norm, candidates=k)(net, x, y) - x, norm) for k in (2, 4, 7)]
    assert all((many <= few + 1e-9).all() for few, many in pairwise(far))
    torch.testing.assert_close(far[-1], 1.02 * distance[norm], rtol=1e-9, atol=1e-12)

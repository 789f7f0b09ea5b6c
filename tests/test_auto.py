"""The special tests of the Auto attack; what it shares with the others is tested with them."""

import copy

import pytest
import torch
from torch import nn

from nets import Counting, Linear, conv_net, digits_net, images, predictions
from poise import InputError
from poise.attacks import adaptive, confsmooth
from poise.attacks.auto import auto

SEEDS = range(2)


def digits(seed):
    """A net of digits, and 100 test images."""
    net, x, _ = digits_net(seed)
    return net, x[100 * seed : 100 * (seed + 1)]


class Scaled(nn.Module):
    """The same answers with another confidence."""

    def __init__(self, net, scale):
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x):
        return self.scale * self.net(x)


def top(net, x):
    """max_j p_j of every image, by a forward of its own at another batch size."""
    with torch.no_grad():
        return torch.cat([net(part).softmax(dim=1).amax(dim=1) for part in x.split(7)])


def mean_below(first, second):
    """Whether the mean of first − second lies below 0 by two standard errors, image by image."""
    d = first - second
    return d.mean() + 2 * d.std() / len(d) ** 0.5 < 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_cost_is_exact(steps, norm):
    net = Counting(copy.deepcopy(conv_net()))
    auto(steps=steps, norm=norm)(net, images(4))
    assert net.backwards == steps and net.forwards == steps + 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_every_image_by_itself_keeps_its_label_and_is_never_worse_than_x(steps, scale, norm):
    net, x = conv_net(3, scale=scale), images(24, 13)
    x_adv = auto(eps={"linf": 0.06, "l2": 0.6}[norm], steps=steps, norm=norm)(net, x)
    y = predictions(net, x)
    alone = torch.cat([net(image[None]).detach() for image in x_adv])
    assert torch.equal(alone.argmax(dim=1), y)
    assert (top(net, x_adv) <= top(net, x) + 1e-6).all()
    lead = alone.softmax(dim=1).topk(2).values.diff(dim=1).neg()[:, 0]
    still = (x_adv == x).flatten(1).all(dim=1)
    assert ((lead >= 1e-4 - 1e-6) | still).all()
    assert still.float().mean() < 0.2


@pytest.mark.parametrize("margin", [0.01, 0.05])
def test_the_margin_is_kept_in_a_fresh_forward(margin):
    net, x = conv_net(scale=30.0), images(24, 10)
    p, at_start = (net(v).detach().softmax(dim=1) for v in (auto(eps=0.06, margin=margin)(net, x), x))
    lead, lead_at_start = (rows.topk(2).values.diff(dim=1).neg()[:, 0] for rows in (p, at_start))
    assert torch.equal(p.argmax(dim=1), at_start.argmax(dim=1))
    assert (lead >= torch.minimum(lead_at_start, torch.tensor(margin)) - 1e-6).all()


@pytest.mark.parametrize("eps", [0.05, 0.15])
def test_it_lies_below_both_of_the_paper_s_attacks(eps):
    rows = []
    for seed in SEEDS:
        net, x = digits(seed)
        rows.append(torch.stack([top(net, a(eps=eps)(net, x)) for a in (auto, adaptive, confsmooth)]))
        means = rows[-1].mean(dim=1)
        assert means[0] < means[1:].min(), seed
    ours, *theirs = torch.cat(rows, dim=1)
    assert all(mean_below(ours, t) for t in theirs)


@pytest.mark.parametrize("steps", [3, 6])
def test_few_steps_will_do(steps):
    for seed in SEEDS:
        net, x = digits(seed)
        ours, *theirs = (top(net, a(eps=0.1, steps=steps)(net, x)) for a in (auto, adaptive, confsmooth))
        assert all(mean_below(ours, t) for t in theirs), seed


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_size_of_the_logits_does_not_decide_who_wins(scale):
    for seed in SEEDS:
        net, x = digits(seed)
        net = Scaled(net, scale)
        ours, *theirs = (top(net, a(eps=0.1)(net, x)) for a in (auto, adaptive, confsmooth))
        assert all(mean_below(ours, t) for t in theirs), seed


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_two_classes_are_brought_to_the_tie_or_as_near_as_the_ball_allows(scale):
    weight = torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(1, 2, 2) * scale
    x = images(32, 5, shape=(1, 2, 2)) * 0.6 + 0.2
    net = Linear(weight)
    lead = (x * weight).flatten(1).sum(dim=1).abs()
    for eps in (0.01, 0.1):
        nearest = (lead - eps * weight.abs().sum()).clamp(min=0).sigmoid()
        assert (top(net, auto(eps=eps, steps=10)(net, x)) <= nearest + 2e-3).all()


def test_a_confidence_that_rounds_to_one_still_has_a_gradient():
    x = torch.full((3, 1, 2, 2), 0.5)
    net = Linear(torch.full((1, 2, 2), 100.0), bias=-80.0)  # a lead of 120: p_y is 1, its gradient 0
    assert (top(net, adaptive(eps=0.4)(net, x)) == 1).all()
    assert (top(net, auto(eps=0.4)(net, x)) < 0.51).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_logits_or_gradients_that_become_nan_on_the_way_are_refused(norm):
    net, x = conv_net(), images(4)

    def logits(at):
        return net(at) * (1.0 if torch.equal(at, x) else torch.nan)

    def gradients(at):
        z = net(at)
        return torch.where(at.flatten(1)[:, :1] > 2, z * torch.nan, z)  # never NaN itself

    for broken in (logits, gradients):
        with pytest.raises(InputError, match="NaN or infinite for 4 of 4 images"):
            auto(norm=norm)(broken, x)

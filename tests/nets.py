"""Small nets and images for the tests: made from a seed, in any dtype, nothing to download."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from poise import data, models
from poise.naming import take_known

SHAPE = (3, 8, 8)


def images(n, seed=0, *, shape=SHAPE, dtype=torch.float32):
    """n different images; about one pixel in six sits on the edge of the box, at exactly 0 or 1."""
    numbers = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * numbers - 0.1).clamp(0, 1).to(dtype)


def shuffled(data, seed):
    """The batches of an image set in an order that the seed decides."""
    return data.batches(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)))


@cache
def conv_net(seed=0, *, classes=5, scale=10.0, shape=SHAPE, dtype=torch.float32):
    """A random net in evaluation mode, with BatchNorm and Dropout; `scale` sharpens its logits.

    Made once and shared: copy it before changing it.
    """
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8, momentum=1.0),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * height * width, classes),
        )
        net(images(64, seed, shape=shape))  # gives the BatchNorm its statistics
    net.eval()
    with torch.no_grad():
        net[-1].weight.mul_(scale)
        net[-1].bias.sub_(net(images(64, seed, shape=shape)).mean(dim=0))  # every class has its images
    return net.to(dtype)


@cache
def digits_net(seed=0):
    """LeNet trained on digits for 5 epochs, frozen, with the 360 test images and their labels.

    Made once and shared by all tests of a process.
    """
    train, test = data.digits("train").batched(32), data.digits("test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.lenet(shape=train.shape)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for epoch in range(5):
            for x, y in shuffled(train, seed * 1_000_003 + epoch):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
    net.eval().requires_grad_(False)
    x, y = next(test.batched(360).batches(torch.arange(360)))
    assert (predictions(net, x) == y).float().mean() > 0.85  # a net that learnt nothing shows nothing
    return net, x, y


class Linear(nn.Module):
    """Two classes whose logits differ by weight · x + bias: what an attack can reach is known."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x):
        lead = (x * self.weight).flatten(1).sum(dim=1) + self.bias
        return torch.stack([lead / 2, -lead / 2], dim=1)


class Counting(nn.Module):
    """A net that counts the forward and backward passes through it."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.forwards = 0
        self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad):
        self.backwards += 1


def confidence(net, x, y):
    """p_y of every image, by a forward of its own."""
    with torch.no_grad():
        return net(x).softmax(dim=1)[torch.arange(len(x)), y]


def lead(net, x):
    """By how much the first of every image's probabilities exceeds the second."""
    with torch.no_grad():
        first, second = net(x).softmax(dim=1).topk(2).values.unbind(dim=1)
    return first - second


def predictions(net, x):
    """The predicted class of every image."""
    with torch.no_grad():
        return net(x).argmax(dim=1)


def fitted(table, name, **options):
    """What the table's factory of that name makes of those of the options that it takes, None left out."""
    return table[name](**take_known(table[name], **options))

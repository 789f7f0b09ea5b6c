"""Against another package: torchattacks' FGSM and PGD without a random start.

They pass eps by a rounding, which we do not, so one step differs by that; over several steps a rounding can
turn the sign of a gradient near 0 at a few pixels.

Batches are powers of two, because torchattacks takes the gradient of the mean loss and we take that of
the sum: then the two differ by an exact factor.
"""

from itertools import cycle

import pytest
import torch
import torchattacks

from nets import conv_net, images, predictions
from poise.attacks import fgsm, pgd

EPSILONS = [1e-3, 1 / 255, 0.03, 8 / 255, 0.1, 0.3]
each_eps = pytest.mark.parametrize(("eps", "seed"), [*zip(EPSILONS, cycle(range(4)))])  # a net for each


def dark(n, seed):
    """Images of which a third of the pixels are black and a third darker than any eps, down to 1e-9."""
    x = images(n, seed)
    numbers = torch.Generator().manual_seed(seed + 1)
    faint = 10 ** (-9 * torch.rand(x.shape, generator=numbers))
    third = torch.randint(3, x.shape, generator=numbers)
    return torch.where(third == 0, torch.zeros_like(x), torch.where(third == 1, faint, x))


def labels(net, x, seed):
    """Mostly predictions, some other classes."""
    y = predictions(net, x)
    return torch.where(torch.arange(len(x)) % 4 == 0, (y + seed) % 5, y)


def apart(ours, theirs):
    """The share of pixels that differ by more than a rounding of eps."""
    return ((ours - theirs).abs() > 2e-7).double().mean().item()


@each_eps
@pytest.mark.parametrize("make", [images, dark])
def test_fgsm(make, eps, seed):
    net = conv_net(seed)
    x = make(16, seed)
    y = labels(net, x, seed)
    assert apart(fgsm(eps=eps)(net, x, y), torchattacks.FGSM(net, eps=eps)(x, y)) == 0


@each_eps
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("make", [images, dark])
def test_pgd(make, steps, eps, seed):
    net = conv_net(seed)
    x = make(16, seed)
    y = labels(net, x, seed)
    for step in (eps / 4, 2 / 255, eps):
        ours = pgd(eps=eps, step=step, steps=steps)
        theirs = torchattacks.PGD(net, eps=eps, alpha=step, steps=steps, random_start=False)
        assert apart(ours(net, x, y), theirs(x, y)) <= (0.01 if steps > 1 else 0)


@pytest.mark.parametrize("seed", range(4))
def test_pgd_on_the_prediction_is_what_no_labels_mean(seed):
    net, x = conv_net(seed), images(16, seed)
    theirs = torchattacks.PGD(net, eps=0.03, alpha=0.01, steps=5, random_start=False)
    assert apart(pgd(eps=0.03, step=0.01, steps=5)(net, x), theirs(x, predictions(net, x))) <= 0.01

"""Random small nets of the layers that certificates read, and points of their balls to try them with."""

import torch
from torch import nn
from torch.nn import functional as F

from poise.attacks import auto, pgd
from poise.models import Normalize
from poise.threat import ball

SHAPE = (2, 7, 7)


class Residual(nn.Module):
    """A block with a shortcut: the same map, or every second pixel with padded channels (option A)."""

    def __init__(self, before, width):
        super().__init__()
        self.stride, self.more = (1, 0) if before == width else (2, width - before)
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        out = self.conv2(F.relu(self.bn1(self.conv1(x))))
        out += F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, 0))
        return F.relu(out)


class Means(nn.Module):
    """The mean of every channel, by the tensor's method; then a view."""

    def forward(self, x):
        return x.mean(dim=(2, 3), keepdim=True).view(x.size(0), -1)


def _plain():
    return [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten()]


def _odd_convs():
    return [
        *(Normalize([0.4, 0.5], [0.3, 0.2]), nn.Conv2d(2, 4, (2, 3), (1, 2), (2, 0), groups=2)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, padding="same", dilation=2)),
        *(nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten()),
    ]


def _max_pools():
    return [
        *(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 2, padding=1)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    ]


def _max_pool_first():
    return [nn.MaxPool2d((2, 3), (1, 2)), nn.Conv2d(2, 4, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]


def _negative_pool():
    """Pooled values below 0, at the border of the image too: padding must never be the largest."""
    conv = nn.Conv2d(2, 4, 3)
    nn.init.constant_(conv.bias, -1.0)
    return [conv, nn.MaxPool2d(2, 2, 1), nn.Flatten()]


def _average_pools():
    return [
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3, 2, 1)),
        *(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ]


def _residual():
    return [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Residual(3, 3), Residual(3, 5), Means()]


def _dense():
    return [nn.Flatten(), nn.Linear(98, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()]


KINDS = (
    *(_plain, _odd_convs, _max_pools, _max_pool_first, _negative_pool, _average_pools, _residual, _dense),
)


def random_net(seed):
    """A net with random weights, biases and BatchNorm statistics, its logits sharpened, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(*KINDS[seed % len(KINDS)]()).double().eval()
        classes = 2 + seed % 4
        with torch.no_grad():
            for name, value in [*body.named_parameters(), *body.named_buffers()]:
                if name.endswith("running_var"):
                    value.uniform_(0.3, 2.0)
                elif name.endswith("running_mean"):
                    value.normal_(0, 0.3)
            features = body(torch.rand(16, *SHAPE, dtype=torch.float64))
            head = nn.Linear(features.shape[1], classes).double()
            head.weight *= 4 / head(features).std(dim=0).mean()
            head.bias -= head(features).mean(dim=0)
    return nn.Sequential(*body, head).eval().requires_grad_(False)


def images(n, seed, shape=SHAPE):
    """Images of which about a third of the pixels are at the edge of the box."""
    numbers = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.6 * numbers - 0.3).clamp(0, 1)


def points(net, x, eps, norm, *, many, seed):
    """(m, n, c, h, w) points of the balls: random ones, corners, between them, and what attacks find."""
    generator = torch.Generator().manual_seed(seed)
    found = [auto(eps=eps, norm=norm, steps=20)(net, x), pgd(eps=eps, norm=norm, steps=10)(net, x), x]
    moves = torch.rand(many, *x.shape, generator=generator, dtype=x.dtype) * 2 - 1
    moves[::3] = moves[::3].sign()
    moves[1::3] *= 3
    own = ball(norm, eps)
    size = eps if norm == "linf" else 2 * eps / x[0].numel() ** 0.5
    centers = x.expand_as(moves).flatten(0, 1)
    moved = own.project(centers + size * moves.flatten(0, 1), centers)
    return torch.cat([torch.stack(found), moved.unflatten(0, moves.shape[:2])])


def violations(net, interval, x, candidates, tolerance=1e-9):
    """How many of how many comparisons contradict the interval: below, above, another label."""
    with torch.no_grad():
        y = net(x).argmax(dim=1)
        p = net(candidates.flatten(0, 1)).softmax(dim=1).reshape(*candidates.shape[:2], -1)
    own = p.gather(2, y[None, :, None].expand(len(p), -1, 1))[..., 0]
    wrong = (
        (p.amax(dim=2) < interval.lower - tolerance).sum()
        + (own > interval.upper + tolerance).sum()
        + (interval.label_kept & (p.argmax(dim=2) != y)).sum()
    )
    return int(wrong), 3 * own.numel()

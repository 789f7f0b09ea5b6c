"""The special tests of APGD; what it shares with the other attacks is tested with them."""

import math
from fractions import Fraction

import pytest
import torch
import torchattacks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nets import Counting, Linear, conv_net, images, predictions
from poise.attacks.apgd import Apgd, Lead, LogitsRatio, apgd_ce, apgd_dlr, checkpoints
from poise.attacks.worst_case import Restarts
from poise.objectives import NegativeCrossEntropy
from poise.threat import Linf

MAKES = {"ce": apgd_ce, "dlr": apgd_dlr}
EPS = 0.06
each_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
each_seed = pytest.mark.parametrize("seed", range(3))


@pytest.mark.parametrize(
    ("steps", "marks"),
    [
        (100, {22, 41, 57, 70, 80, 87, 93, 99}),
        (20, {5, 9, 12, 14, 16, 18, 19}),  # 4.4, 8.2, 11.4, 14, 16, 17.4, 18.6, 19.8 rounded up
        (10, {3, 5, 6, 7, 8, 9}),
        (2, {1}),
        (1, set()),
    ],
)
def test_the_checkpoints_worked_by_hand(steps, marks):
    assert checkpoints(steps) == marks


def test_the_checkpoints_are_those_of_the_recurrence_in_exact_arithmetic():
    for steps in range(1, 300):
        p = [Fraction(0), Fraction(22, 100)]
        while p[-1] < 1:
            p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
        assert checkpoints(steps) == {k for q in p[1:] if (k := math.ceil(q * steps)) < steps}


class Seen(nn.Module):
    """One pixel's value as the first of two logits; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.points = []

    def forward(self, x):
        self.points.append(float(x.detach().flatten()[0]))
        return torch.stack([x.flatten(), -x.flatten() - 1], dim=1)


def towards(target):
    """The squared distance of the first logit to a target."""
    return lambda logits, y: (logits[:, 0] - target) ** 2


def test_a_walk_worked_by_hand():
    """One pixel at .5 that wants to .62, a ball of .4 and a first step of .8; checkpoints after 2, 3, 4."""
    net, x = Seen(), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    attack = Apgd(objective=towards(0.62), ball=Linf(0.4), step=0.8, steps=5)
    x_adv = attack(net, x)
    assert net.points == pytest.approx(
        [
            0.5,
            0.9,  # .5 + .8, cut
            0.4,  # .9 + .75 · (.1 − .9) + .25 · (.9 − .5); one of two steps improved: back to .5, step .4
            0.7,  # .5 + .75 · .4 + .25 · (.5 − .9); one of one improved, and the step was just halved
            0.45,  # .7 − .75 · .4 + .25 · (.7 − .5); not improved: back to .7, step .2
            0.55,  # .7 − .75 · .2 + .25 · (.7 − .7)
        ]
    )
    assert x_adv.item() == pytest.approx(0.55)  # .07 off, .7 is .08 off


class Free:
    """A ball without bounds and a slope of 1; remembers where it was asked to go."""

    def __init__(self):
        self.asked = []

    def project(self, x, center, draw):
        self.asked.append(float(x))
        return x

    def steepest(self, grad):
        return torch.ones_like(grad)


def sizes(losses):
    """The step's size at every step of a walk on which the objective takes these values.

    The lowest has to be the first, so that a walk that goes back goes to x.
    """
    net, free, left = Seen(), Free(), iter(losses)
    attack = Apgd(
        objective=lambda logits, y: logits[:, 0] * 0 + next(left),
        goal=Lead(),
        ball=free,
        step=1.0,
        steps=len(losses) - 1,
    )
    attack(net, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    aims = [free.asked[0], *free.asked[1::2]]  # the other questions are the points themselves
    found = []
    for aim, point in zip(aims, net.points, strict=False):
        # A step of the walk is a power of 2 from where it stands: the last point, or x = 0.
        found.append(next(d for d in (point - aim, -aim) if math.log2(abs(d)).is_integer() and d > 0))
    return found


def test_a_step_that_leads_to_nothing_better_is_halved_though_all_go_down():
    """Condition 2, at checkpoints 5, 9, 12, 14, 16, 18, 19 of 20."""
    down = [9, 8, 7, 6, 5]  # four of five improve, the best does not: halved
    again = [4, 3, 2, 1]  # three of four improve, and the step is not the same as last time: kept
    last = [0.9, 0.8, 0.7]  # three of three, the step is the same, the best too: halved
    worse = [5] * 8  # 0 of 2: halved at 14; 0 of 2 at 16; 18; 19
    expected = [1.0] * 5 + [0.5] * 4 + [0.5] * 3 + [0.25] * 2 + [2**-3] * 2 + [2**-4] * 2 + [2**-5, 2**-6]
    assert sizes([0, *down, *again, *last, *worse]) == expected


@each_make
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_forwards_and_backwards(make, steps):
    x = images(4)
    for random_start, extra in ((False, 0), (True, 1)):
        net = Counting(conv_net())
        make(steps=steps, random_start=random_start)(net, x)
        assert (net.forwards, net.backwards) == (steps + 1 + extra, steps)


class Waits(TorchDispatchMode):
    """Counts the numbers that Python reads from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@each_make
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_loop_never_waits_for_the_device(make, norm):
    counts = []
    for steps in (3, 12):
        with Waits() as waits:
            make(steps=steps, norm=norm)(conv_net(), images(4))
        counts.append(waits.count)
    assert counts[0] == counts[1] < 12


def linear(seed, n=6):
    """A two-class model of a direction w of length 1, images far from the box's edge, both labels."""
    w = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = 0.25 + 0.5 * images(n, seed, dtype=torch.float64)
    y = torch.arange(n) % 2
    return Linear(w / w.norm()), x, y, (2 * y.double() - 1).reshape(-1, 1, 1, 1)


@each_make
@each_seed
@pytest.mark.parametrize("steps", [1, 20])
def test_the_worst_point_of_a_linear_model(make, steps, seed):
    net, x, y, away = linear(seed)
    for norm, way in (("linf", net.weight.sign()), ("l2", net.weight)):
        x_adv = make(eps=EPS, steps=steps, norm=norm)(net, x, y)
        torch.testing.assert_close(x_adv, x + EPS * away * way, rtol=0, atol=1e-12)
        random = make(eps=EPS, steps=20, norm=norm, random_start=True)(net, x, y)
        torch.testing.assert_close(random, x + EPS * away * way, rtol=0, atol=1e-3)


@each_make
@each_seed
def test_l1_steps_bring_the_whole_budget_to_the_pixels_of_the_largest_slopes(make, seed):
    """Nine of 192 pixels, the twentieth, each by EPS / 9: the steps of the L1 ball."""
    net, x, y, away = linear(seed)
    x_adv = make(eps=EPS, steps=20, norm="l1")(net, x, y)
    top = net.weight.abs() >= net.weight.abs().flatten().topk(9).values[-1]
    expected = x + EPS / 9 * away * top * net.weight.sign()
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


def test_the_logits_ratio_worked_by_hand():
    z = torch.tensor([[4.0, 3.0, 2.0, 0.0], [0.0, 1.0, 5.0, 9.0], [2.0, 2.0, 2.0, 1.0]])
    # Misclassified: (1 − 9) / (9 − 1). A tie of three: 0, and no division by it.
    assert LogitsRatio()(z, torch.tensor([0, 1, 2])).tolist() == [0.5, -1.0, 0.0]
    assert LogitsRatio()(z[:1, :2], torch.tensor([1])).tolist() == [-1.0]  # two classes: z_1 − z_0
    assert LogitsRatio()(8 * z + 7, torch.tensor([0, 1, 2])).tolist() == [0.5, -1.0, 0.0]


def attacked(make, net, x, y, **options):
    """How many images are misclassified."""
    return int((predictions(net, make(**options)(net, x, y)) != y).sum())


@each_seed
def test_dlr_finds_the_same_image_at_any_scale_of_the_logits_and_ce_does_not(seed):
    net, x = conv_net(seed), images(32, seed + 10)
    y = predictions(net, x)
    sharp = lambda x: 1024 * net(x)  # noqa: E731
    attack = apgd_dlr(eps=0.02, steps=10)
    assert torch.equal(attack(sharp, x, y), attack(net, x, y))
    found = [attacked(make, sharp, x, y, eps=0.02, steps=10) for make in (apgd_ce, apgd_dlr)]
    assert found[0] < found[1]


@each_make
@each_seed
def test_the_point_returned_is_the_one_of_lowest_goal_that_was_seen(make, seed):
    net, x = conv_net(seed, dtype=torch.float64), images(24, seed + 10, dtype=torch.float64)
    y = predictions(net, x)
    seen = []

    def model(x):
        seen.append(x.detach())
        return net(x)

    attack = make(eps=0.03, steps=12)
    x_adv = attack(model, x, y)
    goal = attack.goal or attack.objective
    with torch.no_grad():
        goals = torch.stack([goal(net(point), y) for point in seen])
        lost = torch.stack([net(point).argmax(dim=1) != y for point in seen])
        assert torch.equal(goal(net(x_adv), y), goals.amin(dim=0))
    assert torch.equal(predictions(net, x_adv) != y, lost.any(dim=0)) and lost.any()


def lenet5(shared_data, name):
    """The MNIST net of advertorch that the weights on file belong to."""
    net = nn.Sequential()
    for part, module in {
        "conv1": nn.Conv2d(1, 32, 3, padding=1),
        "relu1": nn.ReLU(),
        "maxpool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(32, 64, 3, padding=1),
        "relu2": nn.ReLU(),
        "maxpool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(64 * 7 * 7, 200),
        "relu3": nn.ReLU(),
        "linear2": nn.Linear(200, 10),
    }.items():
        net.add_module(part, module)
    net.load_state_dict(torch.load(shared_data / "weights" / f"{name}.pt", weights_only=True))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(("make", "norm", "eps"), [(apgd_ce, "linf", 0.1), (apgd_dlr, "l2", 1.0)])
def test_against_torchattacks_on_mnist(make, norm, eps, shared_data, mnist_root):
    """As many of 100 images fall, within 3: over four seeds either's count varies by up to 3."""
    from torchvision.datasets import MNIST

    net = lenet5(shared_data, "mnist_lenet5_standard")
    test = MNIST(mnist_root, train=False)
    x, y = test.data[:100, None].float() / 255, test.targets[:100]
    loss = {apgd_ce: "ce", apgd_dlr: "dlr"}[make]
    name = {"linf": "Linf", "l2": "L2"}[norm]
    with torch.random.fork_rng(devices=[]):  # theirs seeds torch
        theirs = torchattacks.APGD(net, norm=name, eps=eps, steps=10, loss=loss)(x, y)
    fallen = int((predictions(net, theirs) != y).sum())
    ours = attacked(make, net, x, y, eps=eps, steps=10, norm=norm, random_start=True)
    assert ours >= fallen - 3 and 10 < fallen < 60


@each_make
@each_seed
def test_more_restarts_are_never_worse(make, seed):
    net, x = conv_net(seed), images(16, seed + 10)
    y = predictions(net, x)
    reached = []
    for restarts in (2, 4):
        attack = make(eps=0.02, steps=3, random_start=True, restarts=restarts)
        assert isinstance(attack, Restarts)
        with torch.no_grad():
            goal = attack.attack.goal or attack.attack.objective
            reached.append(goal(net(attack(net, x, y)), y))
    assert (reached[1] <= reached[0] + 1e-6).all() and (reached[1] < reached[0] - 1e-6).any()


def test_the_configuration_is_the_source_s():
    assert apgd_ce(eps=0.1, norm="l2") == Apgd(
        objective=NegativeCrossEntropy(),
        goal=Lead(),
        ball=apgd_dlr(eps=0.1, norm="l2").ball,
        step=0.2,
        steps=20,
    )
    assert apgd_dlr().objective == LogitsRatio() and apgd_dlr().uses_labels

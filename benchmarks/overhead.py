"""What the attack loop costs above the arithmetic it must do, as ratios to a floor, interleaved.

    python benchmarks/overhead.py [--rounds 3] [--nets lenet resnet18 efficientnet]

The floor is T x (forward + input gradient) + 1 forward. Every contender runs in a thread of its own, on its
own copy of the net, and hands the turn on at every forward: whatever slows the machine slows all of them
alike. A contender's time is the time it held the turn.
"""

import argparse
import copy
import statistics
import threading
import time

import torch
from torch import nn
from torch.nn import functional as F

from poise import attacks

STEPS, EPS, STEP = 20, 0.03, 5 / 255


class Ring:
    """Threads that take turns; the time that each held its turn."""

    def __init__(self, names):
        self.turn = threading.Condition()
        self.waiting = list(names)
        self.spent = dict.fromkeys(names, 0.0)
        self.began = 0.0

    def take(self, name):
        """Wait for the turn."""
        with self.turn:
            self.turn.wait_for(lambda: self.waiting[0] == name)
        self.began = time.perf_counter()

    def give(self, name, *, for_good=False):
        """Hand the turn on."""
        self.spent[name] += time.perf_counter() - self.began
        with self.turn:
            self.waiting.remove(name)
            if not for_good:
                self.waiting.append(name)
            self.turn.notify_all()


class Turning(nn.Module):
    """A net that hands the turn on before every forward."""

    def __init__(self, net, ring, name):
        super().__init__()
        self.net, self.ring, self.name = net, ring, name

    def forward(self, x):
        self.ring.give(self.name)
        self.ring.take(self.name)
        return self.net(x)


def floor(model, x):
    """The arithmetic alone."""
    y = torch.zeros(len(x), dtype=torch.long)
    for _ in range(STEPS):
        at = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(at), y), at)
    with torch.no_grad():
        model(x)


def printed(model, x):
    """ConfSmooth as the algorithm is printed: 2T + 1 forwards."""
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(dim=1)

    def loss(logits):
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.98)

    at, low, size = x, loss(logits), torch.full((len(x),), STEP)
    for _ in range(STEPS):
        leaf = at.detach().requires_grad_()
        grad = torch.autograd.grad(loss(model(leaf)).sum(), leaf)[0]
        moved = at - size[:, None, None, None] * grad.sign()
        moved = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
        with torch.no_grad():
            logits = model(moved)
        kept, new = logits.argmax(dim=1) == y, loss(logits)
        size = torch.where(kept, torch.where(new < low, size * 1.1, size), size / 2)
        at = torch.where(kept[:, None, None, None], moved, at)
        low = torch.where(kept, new, low)
    return at


def outside_torchattacks(model, x):
    """PGD of torchattacks."""
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return attack(x, torch.zeros(len(x), dtype=torch.long))


def outside_foolbox(model, x):
    """PGD of foolbox."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return attack(wrapped, x, torch.zeros(len(x), dtype=torch.long), epsilons=EPS)[0]


def ours(name, **options):
    """One of our attacks."""
    attack = attacks.build(name, eps=EPS, steps=STEPS, **options)
    return lambda model, x: attack(model, x)


CONTENDERS = {
    "floor": floor,
    "pgd": ours("pgd"),
    "confsmooth": ours("confsmooth", keep="last"),
    "confsmooth best": ours("confsmooth"),
    "adaptive": ours("adaptive", keep="last"),
    "auto": ours("auto"),
    "confsmooth as printed": printed,
    "torchattacks pgd": outside_torchattacks,
    "foolbox pgd": outside_foolbox,
}


def lenet():
    """LeNet, batch 64."""
    from poise.models import lenet

    return lenet(), torch.rand(64, 1, 28, 28)


def resnet18():
    """ResNet-18 with the stem for CIFAR, batch 8."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net, torch.rand(8, 3, 32, 32)


def efficientnet():
    """EfficientNet-B0 at 224 pixels, batch 4."""
    from torchvision.models import efficientnet_b0

    return efficientnet_b0(), torch.rand(4, 3, 224, 224)


NETS = {"lenet": lenet, "resnet18": resnet18, "efficientnet": efficientnet}


def one_round(net, x):
    """Every contender's time in one interleaved run."""
    ring = Ring(CONTENDERS)

    def run(name, contend):
        model = Turning(copy.deepcopy(net), ring, name).eval()
        ring.take(name)
        contend(model, x.clone())
        ring.give(name, for_good=True)

    threads = [threading.Thread(target=run, args=pair) for pair in CONTENDERS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ring.spent


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.nets:
        torch.manual_seed(0)
        net, x = NETS[name]()
        one_round(net.eval(), x)  # warm
        rounds = [one_round(net, x) for _ in range(options.rounds)]
        print(f"{name}: floor {statistics.median(r['floor'] for r in rounds):.3f} s")
        for contender in CONTENDERS:
            ratios = sorted(r[contender] / r["floor"] for r in rounds)
            print(f"  {contender:24s} {statistics.median(ratios):.3f}  [{ratios[0]:.3f}, {ratios[-1]:.3f}]")


if __name__ == "__main__":
    main()

"""What the attack loop costs above the arithmetic it must do, as ratios to a floor, interleaved.

    python benchmarks/overhead.py [--rounds 6] [--nets lenet resnet18 efficientnet]

The floor is T x (forward + input gradient) + 1 forward; no contender of ours may take more of either.
Every contender runs in a thread of its own, on its own copy of the net, and hands the turn on at every
forward: whatever slows the machine slows all of them alike. A turn's time is the processor time of its
thread (one thread of arithmetic, so that nothing is done elsewhere); a contender's is the sum over its
turns of the shortest that any round took, because another program's load can only lengthen a turn. The
range is that of the two halves of the rounds. foolbox, torchattacks, ART and adv-lib take part where
they are installed, each with T + 1 forwards.
"""

import argparse
import copy
import ctypes
import importlib.util
import sys
import threading
import time
import types

import torch
from torch import nn
from torch.nn import functional as F

from poise import attacks

STEPS, EPS, STEP = 20, 0.03, 5 / 255


class Ring:
    """Threads that take turns; the processor time of every turn."""

    def __init__(self, names):
        self.turn = threading.Condition()
        self.waiting = list(names)
        self.spent = {name: [] for name in names}
        self.began = 0.0

    def take(self, name):
        """Wait for the turn."""
        with self.turn:
            self.turn.wait_for(lambda: self.waiting[0] == name)
        self.began = time.thread_time()

    def give(self, name, *, for_good=False):
        """Hand the turn on."""
        self.spent[name].append(time.thread_time() - self.began)
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
    """ConfSmooth pass by pass as Algorithm 1 lists them, its steps kept by eq. 6: 2T + 1 forwards."""
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


def judged(model, x_adv):
    """One forward more, for those who do not look at what they return."""
    with torch.no_grad():
        model(x_adv)
    return x_adv


def outside_torchattacks(model, x):
    """PGD of torchattacks."""
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return judged(model, attack(x, torch.zeros(len(x), dtype=torch.long)))


def outside_foolbox(model, x):
    """PGD of foolbox."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return attack(wrapped, x, torch.zeros(len(x), dtype=torch.long), epsilons=EPS)[0]


def outside_art(model, x):
    """PGD of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classes = 1000 if x.shape[-1] == 224 else 10
    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), x.shape[1:], classes, clip_values=(0, 1), device_type="cpu"
    )
    options = {"eps": EPS, "eps_step": STEP, "max_iter": STEPS, "batch_size": len(x), "verbose": False}
    y = torch.zeros(len(x), dtype=torch.long).numpy()
    return ProjectedGradientDescentPyTorch(wrapped, **options).generate(x.numpy(), y)


def outside_advlib(model, x):
    """PGD of adv-lib, which imports visdom for its plots alone."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    from adv_lib.attacks import pgd_linf

    y = torch.zeros(len(x), dtype=torch.long)
    options = {"steps": STEPS, "random_init": False, "absolute_step_size": STEP}
    return judged(model, pgd_linf(model, x, y, EPS, **options))


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
}
RIVALS = {
    "torchattacks": ("torchattacks", outside_torchattacks),
    "foolbox": ("foolbox", outside_foolbox),
    "adversarial-robustness-toolbox": ("art", outside_art),
    "adv-lib": ("adv_lib", outside_advlib),
}


def contenders():
    """Ours, and those of the rivals that are installed; says which are not."""
    chosen = dict(CONTENDERS)
    for package, (module, contend) in RIVALS.items():
        if importlib.util.find_spec(module) is None:
            print(f"left out: pgd of {package}, which is not installed")
        else:
            chosen[f"{module} pgd"] = contend
    return chosen


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


def one_round(net, x, names):
    """Every contender's turns in one interleaved run."""
    ring = Ring(names)

    def run(name, contend):
        model = Turning(copy.deepcopy(net), ring, name).eval()
        ring.take(name)
        contend(model, x.clone())
        ring.give(name, for_good=True)

    threads = [threading.Thread(target=run, args=pair) for pair in names.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ring.spent


def rolled(names, by):
    """The same contenders, another first: nobody always follows the same neighbour's warm-up."""
    pairs = list(names.items())
    return dict(pairs[by % len(pairs) :] + pairs[: by % len(pairs)])


def ratios(rounds):
    """Each contender's time over the floor's."""
    least = {name: sum(map(min, zip(*(r[name] for r in rounds), strict=True))) for name in rounds[0]}
    return {name: time / least["floor"] for name, time in least.items()}, least["floor"]


def keep_memory():
    """Have glibc keep what is freed, in one heap: else page faults are a third of what LeNet takes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
        if mallopt is not None:
            mallopt(option, value)


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--page-faults", action="store_true", help="leave glibc's allocator as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_faults:
        keep_memory()
    names = contenders()
    for name in options.nets:
        torch.manual_seed(0)
        net, x = NETS[name]()
        one_round(net.eval(), x, names)  # warm
        rounds = [one_round(net, x, rolled(names, i)) for i in range(options.rounds)]
        found, floor_time = ratios(rounds)
        halves = ratios(rounds[::2])[0], ratios(rounds[1::2])[0]
        print(f"{name}, batch {len(x)}: floor {floor_time:.3f} s of {STEPS} steps, {options.rounds} rounds")
        print(f"  {'':24s} forwards  / floor       range        / pgd")
        for contender in names:
            low, high = sorted(half[contender] for half in halves)
            forwards = len(rounds[0][contender]) - 1
            print(
                f"  {contender:24s} {forwards:8d}  {found[contender]:7.3f}  [{low:.3f}, {high:.3f}]"
                f"  {found[contender] / found['pgd']:7.3f}"
            )


if __name__ == "__main__":
    main()

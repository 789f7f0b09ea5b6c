"""What the fast paths cost and reach: time as a ratio to the eager floor, labels kept, confidence.

    POISE_TEST_DATA=FOLDER python benchmarks/fast.py [--rounds 3] [--nets lenet resnet18] [--share 0.4]
    POISE_TEST_DATA=FOLDER python benchmarks/fast.py --nets --strength digits --start 100 --images 64

The time is measured as in overhead.py, and the floor is the same: every contender in a thread of its
own on its own copy of the net, the turn handed on at every forward, also a prepared copy's. The
preparation is timed apart; the model's own two forwards, which check the result, are in the ratio.
"""

import argparse
import copy
import platform
import sys
import threading
import time
from dataclasses import replace

import torch
import zoo
from overhead import EPS, NETS, STEPS, Ring, Turning, floor, keep_memory

from poise import attacks
from poise.fast import Fast
from poise.fast import attack as walking
from poise.fast.prepare import prepare

ATTACKS = ("confsmooth", "adaptive", "auto")
PATHS = ("float32", "bf16")


class TurningCopy:
    """A prepared copy that hands the turn on before every forward."""

    def __init__(self, net, ring, name):
        self.net, self.ring, self.name = net, ring, name

    def __call__(self, x):
        self.ring.give(self.name)
        self.ring.take(self.name)
        return self.net(x)


def one_round(net, x, contenders):
    """Every contender's time in one interleaved run."""
    ring, lent = Ring(contenders), {}
    walking.copy_for = lambda model, *_, **__: lent[model]

    def run(name, contend):
        model = Turning(copy.deepcopy(net), ring, name).eval()
        if isinstance(contend, tuple):
            contend, nets = contend
            full, low = (part and TurningCopy(part, ring, name) for part in (nets.full, nets.low))
            lent[model] = replace(nets, full=full, low=low)
        ring.take(name)
        contend(model, x.clone())
        ring.give(name, for_good=True)

    threads = [threading.Thread(target=run, args=pair) for pair in contenders.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ring.spent


def times(name, kinds, rounds, share):
    """Print the ratios of one net; `share` of the steps are in bf16."""
    torch.manual_seed(0)
    net, x = NETS[name]()
    logits = net.eval()(x).detach()
    contenders, notes = {"floor": floor}, {}
    for kind in kinds:
        attack = attacks.build(kind, eps=EPS, steps=STEPS)
        contenders[f"{kind} eager"] = attack
        for precision in PATHS:
            began = time.perf_counter()
            nets = prepare(net, x, logits, low=precision == "bf16", layout="auto")
            notes[f"{kind} {precision}"] = f"  prepared in {time.perf_counter() - began:.2f} s {nets.notes}"
            fast = Fast(attack=attack, precision=precision, share=share)
            contenders[f"{kind} {precision}"] = fast, nets
    one_round(net, x, contenders)  # warm
    runs = [one_round(net, x, contenders) for _ in range(rounds)]
    floors = cost(runs, "floor")
    print(f"{name}: batch {len(x)}, floor {floors:.3f} s")
    for path in contenders:
        halves = sorted(cost(part, path) / cost(part, "floor") for part in (runs[::2], runs[1::2] or runs))
        spread = f"[{halves[0]:.3f}, {halves[1]:.3f}]"
        print(f"  {path:20s} {cost(runs, path) / floors:.3f}  {spread}{notes.get(path, '')}", flush=True)


def cost(runs, path):
    """The sum over the turns of the shortest that any round took: load can only lengthen a turn."""
    return sum(min(turn) for turn in zip(*(run[path] for run in runs), strict=True))


def strength(name, kinds, images, start, share):
    """Print labels kept and mean confidence of every path, judged by the model itself."""
    eps = STRENGTH[name]
    model, x, _ = zoo.load(name, images=images, start=start)
    if not len(x):
        print(f"{name}: left out, it has no test images from {start} on")
        return
    clean, label = judge(model, x)
    print(f"{name}: eps {eps:.4f}, {len(x)} images, clean confidence {clean.mean():.4f}")
    for kind in kinds:
        attack = attacks.build(kind, eps=eps, steps=STEPS)
        eager, top = judge(model, attack(model, x))
        print(f"  {kind:11s} eager    kept {(top == label).double().mean():.3f}  {eager.mean():.4f}")
        for precision in PATHS:
            fast = Fast(attack=attack, precision=precision, share=share)
            reached, top = judge(model, fast(model, x))
            off = reached - eager
            error = 1.96 * off.std() / len(x) ** 0.5
            print(
                f"  {kind:11s} {precision:8s} kept {(top == label).double().mean():.3f}  "
                f"{reached.mean():.4f}  difference {off.mean():+.4f} ± {error:.4f}"
            )


@torch.no_grad()
def judge(model, x):
    """Confidence and label of every image, at another batch size than the attack's."""
    top = torch.cat([model(part).softmax(dim=1) for part in x.split((len(x) + 1) // 2)]).max(dim=1)
    return top.values, top.indices


STRENGTH = {"mnist-standard": 0.1, "digits": 0.1, "cifar10-resnet20": 4 / 255, "cifar10-resnet56": 1 / 255}


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="*", choices=NETS, default=["lenet", "resnet18"])
    parser.add_argument("--strength", nargs="*", choices=STRENGTH, default=list(STRENGTH))
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--start", type=int, default=600, help="skip so many of each net's test images")
    parser.add_argument("--share", type=float, default=Fast.share, help="of the steps, in bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {' '.join(sys.argv)}")
    print(f"cpu: {torch.backends.cpu.get_cpu_capability()}, 1 thread")
    for name in options.nets:
        times(name, options.attacks, options.rounds, options.share)
    for name in options.strength:
        strength(name, options.attacks, options.images, options.start, options.share)


if __name__ == "__main__":
    main()

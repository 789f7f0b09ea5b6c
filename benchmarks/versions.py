"""An attack of two versions of poise on the same images: means, paired intervals, labels, passes.

Run it with each version first on the path, then compare the two files:

    POISE_TEST_DATA=... PYTHONPATH=OLD/src python benchmarks/versions.py measure old.npz
    POISE_TEST_DATA=... PYTHONPATH=NEW/src python benchmarks/versions.py measure new.npz
    python benchmarks/versions.py compare old.npz new.npz

The confidence of an image is that of its label after the attack, judged by `poise.evaluate` in float32 at
another batch size, and 1 where the label is lost.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import zoo

import poise

ROWS = [  # net, norm, eps, steps, images, the first
    *(("digits", "linf", 0.1, steps, 360, 0) for steps in (5, 10, 20, 50)),
    ("digits", "linf", 0.1, 200, 180, 0),
    ("digits", "linf", 0.03, 20, 360, 0),
    *(("mnist-standard", "linf", eps, 20, 300, 3000) for eps in (0.03, 0.1, 0.3)),
    ("mnist-standard", "linf", 0.1, 5, 300, 3000),
    ("mnist-standard", "linf", 0.1, 200, 150, 3000),
    *(("mnist-adversarial", "linf", eps, 20, 300, 3000) for eps in (0.1, 0.3)),
    ("mnist-3-8", "linf", 0.1, 20, 300, 1000),
    ("mnist-4-9", "linf", 0.1, 20, 300, 1000),
    *(("cifar10-resnet20", "linf", eps, 20, 300, 0) for eps in (1 / 255, 0.03)),
    ("cifar10-resnet20", "linf", 4 / 255, 20, 150, 300),
    ("cifar10-resnet20", "linf", 1 / 255, 5, 150, 0),
    ("cifar10-certified-linf", "linf", 8 / 255, 20, 100, 0),
    ("cifar10-resnet56", "linf", 1 / 255, 20, 60, 0),
    ("digits", "l2", 1.0, 20, 360, 0),
    ("cifar10-resnet20", "l2", 0.25, 20, 150, 0),
    ("mnist-standard", "l2", 1.5, 20, 300, 3000),
    ("digits", "l1", 5.0, 20, 360, 0),
    ("mnist-standard", "l1", 10.0, 20, 150, 3000),
]
BATCH = 100


def named(row):
    """A row as one text."""
    net, norm, eps, steps, images, first = row
    return f"{net} | {norm} {eps:.4g} | {steps} | {images} from {first}"


def measure(file, name, only):
    """The confidences and labels of every row, and the passes a batch, into a file."""
    found = {}
    for row in ROWS:
        net, norm, eps, steps, images, first = row
        if only not in named(row):
            continue
        case = zoo.load(net, images=images, start=first)
        counted = zoo.Counting(case.model)
        attack = poise.attacks.build(name, eps=eps, steps=steps, norm=norm)
        attack(counted, case.x[:8])
        batches = list(zip(case.x.split(BATCH), case.y.split(BATCH), strict=True))
        records = poise.evaluate(case.model, batches, attack)
        confidence = torch.where(records.kept, records.attacked.amax(dim=1), 1.0)
        found[named(row)] = confidence.double().numpy()
        found[named(row) + " kept"] = records.kept.numpy()
        found[named(row) + " passes"] = np.array([counted.forwards, counted.backwards])
        print(named(row), f"{confidence.mean():.4f}", flush=True)
    np.savez(file, **found)


def compare(old, new):
    """A table of both, the new minus the old."""
    before, after = np.load(old), np.load(new)
    print("| net | ball | steps | images | old | new | new − old | paired 95 % | labels kept | passes |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in (row for row in map(named, ROWS) if row in before and row in after):
        a, b = before[name], after[name]
        low, high = zoo.interval(torch.from_numpy(b - a).float())
        kept, (there, back) = after[name + " kept"], after[name + " passes"]
        print(
            f"| {name} | {a.mean():.4f} | {b.mean():.4f} | {b.mean() - a.mean():+.4f} "
            f"| [{low:+.4f}, {high:+.4f}] | {kept.sum()} of {len(kept)} | {there} + {back} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("file", type=Path)
    one.add_argument("--attack", default="auto")
    one.add_argument("--only", default="", help="rows that hold this text")
    one.set_defaults(run=lambda args: measure(args.file, args.attack, args.only))
    two = commands.add_parser("compare")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    two.set_defaults(run=lambda args: compare(args.old, args.new))
    asked = parser.parse_args()
    asked.run(asked)

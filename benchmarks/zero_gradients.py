"""How many pixels of MNIST have a gradient of exactly 0 in the nets of Table 2, and ΔW / SSIM by net.

    python benchmarks/zero_gradients.py --out runs/paper --root data [--published mnist_lenet5_standard.pt]

After `poise reproduce table2 --out runs/paper --root data`.
"""

import argparse
from pathlib import Path

import torch

from poise import data, models
from poise.attacks.aim import run
from poise.metrics.perturbation import structural_similarity
from poise.objectives import NegativeCrossEntropy
from poise.paper import jobs
from poise.paper.looks import AUDITED
from poise.paper.nets import Place
from poise.paper.readings import OURS, attacks_of, unheld
from poise.paper.suites import CPU


def main():
    """A line a net and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--published", type=Path)
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = next(
        iter(data.load("mnist", root=args.root).take(torch.arange(args.images)).batched(args.images))
    )
    nets = {
        f"seed {job.net.seed}": job.net.load(Place(args.out, args.root))
        for job in jobs.table2(CPU, OURS)
        if job.look == AUDITED
    }
    if args.published is not None:
        nets["published"] = models.load("lenet5-advertorch", weights=args.published)
    for name, net in nets.items():
        at = x.clone().requires_grad_()
        gradient = torch.autograd.grad(NegativeCrossEntropy()(net(at), y).sum(), at)[0]
        print(f"{name}: zero gradient at {(gradient == 0).double().mean():.3f} of the pixels")
        for held, found in (("held", attacks_of(CPU.magnitude, OURS)), ("unheld", unheld(CPU.magnitude))):
            for attack in ("PGD", "Adaptive", "ConfSmooth"):
                moved = run(found[attack], net, x, y)
                size, alike = (moved - x).abs().mean(), structural_similarity(moved, x).mean()
                print(f"  {attack} {held}: {size:.4f} / {alike:.3f}")


if __name__ == "__main__":
    main()

"""Table 2 explained: ΔW and SSIM of many LeNets, the choices of *unheld* taken back one at a time.

    python benchmarks/table2.py FOLDER --root data [--nets 20] [--images 300]

Trains the LeNets of `poise reproduce table2` in FOLDER, seeds 0 and on, and goes on where it was stopped;
each net's numbers are a file. Prints the tables: mean over nets ± deviation over nets, and over images.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from poise import data
from poise.attacks.aim import run
from poise.metrics import perturbation
from poise.objectives import NegativeCrossEntropy
from poise.paper.nets import PaperNet, Place
from poise.paper.readings import OURS, Unclipped, attacks_of, unheld
from poise.paper.suites import CPU
from poise.progress import silent
from poise.report.tables import Table
from poise.store import write_frame
from poise.threat import Linf, Masked

PAPER = {"PGD": (0.0274, 0.8440), "Dropout": (0.0232, 0.7592), "Adaptive": (0.0627, 0.6813)}
PAPER["ConfSmooth"] = (0.0966, 0.6136)
STEPPING = ("Adaptive", "ConfSmooth")


def variants():
    """By name: the four attacks of *unheld*, of each choice taken back, and of our own reading."""
    setting = CPU.magnitude
    free, held, inside = unheld(setting), Unclipped(setting.eps), Linf(setting.eps)

    def but(names, **changes):
        return free | {name: replace(free[name], **changes) for name in names}

    return {
        "unheld": free,
        "PGD, Dropout held to [0, 1] too": but(["PGD"], ball=inside)
        | {"Dropout": replace(free["Dropout"], ball=Masked(inside, 0.05, rescale=True))},
        "Adaptive, ConfSmooth held to S": but(STEPPING, ball=held),
        "Adaptive, ConfSmooth held to [0, 1]": but(STEPPING, ball=Linf(1.0)),
        "Dropout not rescaled": but(["Dropout"], ball=Masked(held, 0.05)),
        "the best point, not the last": but(STEPPING, keep="best"),
        "ours: S, [0, 1], the best point": attacks_of(setting, OURS),
    }


def judge(net, x, y):
    """A line an attack and variant: means and deviations over images of |δ| and SSIM."""
    at = x.clone().requires_grad_()
    gradient = torch.autograd.grad(NegativeCrossEntropy()(net(at), y).sum(), at)[0]
    still = float((gradient == 0).double().mean())
    for variant, found in variants().items():
        for name, attack in found.items():
            moved = run(attack, net, x, y)
            size = (moved - x).abs().flatten(1).mean(dim=1)
            alike = perturbation.structural_similarity(moved, x)
            yield {
                "variant": variant,
                "attack": name,
                "delta_w": float(size.mean()),
                "delta_w_over_images": float(size.std()),
                "ssim": float(alike.mean()),
                "ssim_over_images": float(alike.std()),
                "zero_gradient": still,
            }


def table(frame):
    """Each attack and variant: mean over nets, deviation over nets, mean deviation over images."""
    lines = []
    for name, (size, alike) in PAPER.items():
        lines.append([name, "the paper", f"{size:.4f}", "", "", f"{alike:.3f}", "", ""])
        for variant in variants():
            rows = frame.filter(attack=name, variant=variant)
            spread = [float(np.std(rows[key].to_numpy(), ddof=1)) for key in ("delta_w", "ssim")]
            means = rows.mean().row(0, named=True)
            size = f"{means['delta_w']:.4f}", f"{spread[0]:.4f}", f"{means['delta_w_over_images']:.4f}"
            alike = f"{means['ssim']:.3f}", f"{spread[1]:.3f}", f"{means['ssim_over_images']:.3f}"
            lines.append([name, variant, *size, *alike])
    heads = ["attack", "variant", "ΔW", "± nets", "± images", "SSIM", "± nets", "± images"]
    return Table(heads, lines).markdown()


def main():
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(args.folder, args.root)
    test = data.load("mnist", root=args.root).take(torch.arange(args.images))
    x, y = next(iter(test.batched(args.images)))
    frames = []
    for seed in range(args.nets):
        file = args.folder / f"table2-{seed}.parquet"
        if not file.exists():
            paper = PaperNet(setting=CPU.magnitude, defense="Vanilla", seed=seed)
            paper.train(place, silent)
            write_frame(file, pl.DataFrame(list(judge(paper.load(place), x, y))))
            print(f"net {seed}", flush=True)
        frames.append(pl.read_parquet(file).with_columns(seed=pl.lit(seed)))
    frame = pl.concat(frames)
    print(table(frame))
    still = [float(one["zero_gradient"][0]) for one in frames]
    print("gradient of exactly 0, share of pixels by net:", " ".join(f"{share:.3f}" for share in still))


if __name__ == "__main__":
    main()

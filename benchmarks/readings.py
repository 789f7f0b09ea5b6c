"""Where the paper can be read in several ways: Dropout's readings, and Algorithm 1's listing against eq. 6.

    POISE_TEST_DATA=... python benchmarks/readings.py dropout   # ResNet-20, 64 exact CIFAR-10 test images
    POISE_TEST_DATA=... python benchmarks/readings.py listing   # LeNet-5 on MNIST, 300 images

The folder holds cifar10_exact_subset.npz, mnist/, and of weights/ cifar10_resnet20.pt and
mnist_lenet5_standard.pt.
"""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import torch

import poise
from poise import attacks

DROPOUT = {  # what the mask acts on, p, the label (S = .03, 20 steps of 5/255)
    "accumulated .95 free": attacks.dropout_accumulated(keep_fraction=0.95),
    "accumulated .05 free": attacks.dropout_accumulated(),
    "accumulated .05 kept": attacks.dropout_accumulated(accept="label"),
    "accumulated, x 20 .05 free": attacks.dropout_rescaled(),
    "accumulated, x 20 .05 kept": attacks.dropout_rescaled(accept="label"),
    "each step .05 free": attacks.dropout(accept="always"),
    "each step .05 kept": attacks.dropout(),
    "each step .95 kept": attacks.dropout(keep_fraction=0.95),
}


def row(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, attack: attacks.Attack) -> str:
    """Mean MSP, share of labels kept, mean absolute change."""
    r = poise.evaluate(model, [(x, y)], attack)
    kept = poise.metrics.label_kept(r.clean, r.attacked)
    return f"{poise.metrics.confidence(r.attacked):.4f} {kept:.2f} {float(r.wasserstein.mean()):.4f}"


def main(what: str) -> None:
    """Print a line a reading."""
    torch.set_num_threads(1)
    folder = Path(os.environ["POISE_TEST_DATA"])
    if what == "dropout":
        arrays = np.load(folder / "cifar10_exact_subset.npz")
        x = torch.from_numpy(arrays["x_test"][:64]).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(arrays["y_test"][:64]).long()
        file = folder / "weights/cifar10_resnet20.pt"
        model = poise.models.load("cifar-resnet20", shape=(3, 32, 32), weights=file)
        for name, attack in DROPOUT.items():
            print(f"{name}: {row(model, x, y, attack)}", flush=True)
        return
    file = folder / "weights/mnist_lenet5_standard.pt"
    model = poise.models.load("lenet5-advertorch", weights=file)
    raw = [
        gzip.decompress((folder / "mnist" / f"t10k-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    ]
    x = torch.frombuffer(bytearray(raw[0]), dtype=torch.uint8, offset=16).reshape(-1, 1, 28, 28)[:300] / 255
    y = torch.frombuffer(bytearray(raw[1]), dtype=torch.uint8, offset=8)[:300].long()
    for name, factory in (("adaptive", attacks.adaptive), ("confsmooth", attacks.confsmooth)):
        for keep in ("last", "best"):
            for accept in ("label", "improving"):
                attack = factory(eps=0.1, keep=keep, accept=accept)
                print(f"{name} {keep} {accept}: {row(model, x, y, attack)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

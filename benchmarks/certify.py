"""Certificates, measured: the bracket on real nets, soundness on random ones, what windows of rows save.

POISE_TEST_DATA=... python benchmarks/certify.py table
POISE_TEST_DATA=... python benchmarks/certify.py sound --nets 100 --points 10000
POISE_TEST_DATA=... python benchmarks/certify.py windows
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
import zoo

import poise
from poise import attacks, certify, data, defenses
from poise.certify.bounds import Bounds, Linf
from poise.certify.network import READERS, read
from poise.training import TrainJob, train

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from certify_nets import images, points, random_net, violations

ROWS = [  # net, norm, eps, images
    *(("digits", "linf", eps, 100) for eps in (0.01, 0.03, 0.05)),
    *(("uat-smooth .15", "linf", eps, 100) for eps in (0.01, 0.03, 0.05)),
    ("ibp .05", "linf", 0.05, 360),
    ("ibp .15", "linf", 0.15, 360),
    ("mnist-ibp .1", "linf", 0.1, 300),
    *(("mnist-standard", "linf", eps, 10) for eps in (0.01, 0.03)),
    *(("mnist-adversarial", "linf", eps, 10) for eps in (0.01, 0.03)),
    ("cifar10-certified-linf", "linf", 8 / 255, 50),
    ("cifar10-certified-l2", "l2", 2 / 255, 50),
]


def trained(name: str) -> torch.nn.Module:
    """LeNet trained by a defense, named with its radius, on digits or on 20,000 images of MNIST."""
    of, eps = name.split()
    defense, ours = of.removeprefix("mnist-"), of.endswith("ibp")
    if of.startswith("mnist-"):
        pixels, y = (torch.tensor(part[:20_000]) for part in zoo.mnist("train"))
        images, epochs = data.ImageSet("mnist", pixels[:, None], y.long(), [*"0123456789"]), 12
    else:
        images, epochs = data.digits("train"), (200 if float(eps) > 0.1 else 100) if ours else 40
    job = TrainJob(
        data=images.name,
        model="lenet",
        defense=defense,
        lr=0.05,
        epochs=epochs,
        eps_warmup=2 * epochs // 3 if ours else 0,
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(job, images, defenses.build(defense, eps=float(eps)), folder + "/run")


def table(only: str) -> None:
    """Clean, attacked and certified confidence, and seconds of CPU for the certificate."""
    print("| net, ε | accuracy | clean | attacked | IBP | CROWN | upper | kept | ms an image |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, norm, eps, many in ROWS:
        if only not in name:
            continue
        if name in zoo.ZOO:
            net, x, y = zoo.load(name, images=many)
        else:
            test = zoo.mnist_test if name.startswith("mnist-") else zoo.digits_test
            net, (x, y) = trained(name).requires_grad_(False), test(0, many)
        clean = net(x).softmax(dim=1)
        attacked = net(attacks.auto(eps=eps, norm=norm, steps=50)(net, x)).softmax(dim=1).amax(dim=1)
        wide = certify.ibp(eps=eps, norm=norm)(net, x)
        began = time.process_time()
        found = certify.crown(eps=eps, norm=norm)(net, x)
        each = (time.process_time() - began) / many * 1000
        assert (found.lower <= attacked + 1e-5).all()
        right = clean.argmax(dim=1) == y
        numbers = (
            right,
            clean.amax(dim=1),
            attacked,
            wide.lower,
            found.lower,
            found.upper,
            found.label_kept,
        )
        shown = " | ".join(f"{float(values.double().mean()):.3f}" for values in numbers)
        print(f"| {name}, {eps:.4g} {norm} | {shown} | {each:.0f} |", flush=True)


def sound(nets: int, many: int) -> None:
    """Comparisons with random, corner, `auto` and PGD points, on other nets than the tests'."""
    wrong = compared = 0
    for seed in range(1000, 1000 + nets):
        net, x = random_net(seed), images(3, seed)
        for norm, radii in (("linf", (0.01, 0.04, 0.15)), ("l2", (0.05, 0.3, 1.0))):
            eps = radii[seed % 3]
            candidates = points(net, x, eps, norm, many=many, seed=seed)
            for certificate in (certify.ibp(eps=eps, norm=norm), certify.crown(eps=eps, norm=norm)):
                more, count = violations(net, certificate(net, x), x, candidates)
                wrong, compared = wrong + more, compared + count
    print(f"{wrong} violations in {compared:,} comparisons on {nets} nets")


def windows() -> None:
    """Multiply-adds of a row from the middle of each convolution, by windows and on whole images."""
    for name in ("mnist-adversarial", "cifar10-certified-linf", "cifar10-resnet20"):
        net, x, _ = zoo.load(name, images=2)
        with torch.no_grad():
            network, _ = read(net, x, READERS)
            bounds = Bounds.by_intervals(network, Linf(x, 2 / 255))
        few = whole = 0
        for index in range(1, len(network.nodes)):
            if (unsure := bounds.unsure(index)) is not None and unsure.ndim == 4:
                rows = 2 * int(unsure.sum()) / len(x)
                few += rows * bounds.work(index)[0]
                whole += rows * bounds.work(index, whole=True)[0]
        print(f"{name}: {few:.2g} by windows, {whole:.2g} on whole images, {whole / few:.1f} times")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("table", "sound", "windows"))
    parser.add_argument("--only", default="", help="rows of the table with this in their name")
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--points", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"poise {poise.__version__}, torch {torch.__version__}, one thread")
    if asked.what == "table":
        table(asked.only)
    elif asked.what == "sound":
        sound(asked.nets, asked.points)
    else:
        windows()


if __name__ == "__main__":
    main()

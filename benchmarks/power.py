"""The attacks that lower confidence with power: hundreds of images a row, equal passes, paired intervals.

    POISE_TEST_DATA=... python benchmarks/power.py measure FOLDER [--only TEXT]
    POISE_TEST_DATA=... python benchmarks/power.py page FOLDER           # docs/power.md, docs/power.csv

Each attack on each row is a file in FOLDER, so that the same command goes on where it was stopped. `auto`
takes 20 gradients and 26 forwards, 46 passes; the paper's two take 23 gradients and 24 forwards. The
confidence of an image is that of its label, judged by `poise.evaluate`, and 1 where the label is lost.
"""

import argparse
from pathlib import Path

import polars as pl
import torch
import zoo

import poise
from poise.report.tables import Table
from poise.store import circumstances, read_tensors, write_tensors, write_text

ROWS = [  # net, norm, eps, images, the first
    *(("digits", "linf", eps, 360, 0) for eps in (0.03, 0.1, 0.15)),
    ("digits-uat-smooth", "linf", 0.15, 360, 0),
    ("digits-uat-gap", "linf", 0.15, 360, 0),
    ("digits-vit", "linf", 0.1, 360, 0),
    *(("mnist-standard", "linf", eps, 300, 4000) for eps in (0.03, 0.1, 0.3)),
    *(("mnist-adversarial", "linf", eps, 300, 4000) for eps in (0.1, 0.3)),
    ("mnist-3-8", "linf", 0.1, 300, 0),
    ("mnist-4-9", "linf", 0.1, 300, 0),
    ("chest-3", "linf", 4 / 255, 226, 0),
    ("digits", "l2", 1.0, 360, 0),
    ("mnist-standard", "l2", 1.5, 300, 4000),
    ("digits", "l1", 5.0, 360, 0),
    ("mnist-standard", "l1", 10.0, 300, 4000),
    *(("cifar10-resnet20", "linf", eps, 300, 400) for eps in (1 / 255, 0.03)),
    ("cifar10-certified-linf", "linf", 8 / 255, 300, 400),
    ("imagenet-lite0", "linf", 1 / 255, 100, 0),
]
BATCH = 100
PAPER, EQUAL = 5 / 255, 23  # the paper's first step; its attacks' gradients where auto has 20


def contenders(norm, eps):
    """Every attack of a row by its name on the page."""
    found = {
        "noise": poise.attacks.build("noise", eps=eps, norm=norm),
        **{f"auto {steps}": build("auto", norm, eps, steps) for steps in (20, 60, 7)},
    }
    for name in ("adaptive", "confsmooth"):
        steps = {"5/255": PAPER, ".625 ε": 0.625 * eps} if norm == "linf" else {"": None}
        for step, size in steps.items():
            found[f"{name} {step}".strip()] = build(name, norm, eps, EQUAL, step=size)
        found[f"{name} 6"] = build(name, norm, eps, 6, step=0.625 * eps if norm == "linf" else None)
    return found


def build(name, norm, eps, steps, **options):
    """An attack of that many gradients."""
    return poise.attacks.build(name, norm=norm, eps=eps, steps=steps, **options)


def named(row):
    """A row as one text."""
    net, norm, eps, images, _ = row
    budget = f"{eps * 255:.3g}/255" if net.startswith(("cifar", "imagenet", "chest")) else f"{eps:g}"
    return f"{net}, {norm} {budget}, {images} images"


def measure(folder, only):
    """Whatever is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        net, norm, eps, images, first = row
        attacks = contenders(norm, eps)
        files = {name: folder / f"{named(row)} {name}.safetensors".replace("/", "_") for name in attacks}
        missing = [name for name, file in files.items() if not file.exists()]
        if only not in named(row) or not missing:
            continue
        case = zoo.load(net, images=images, start=first)
        batches = list(zip(case.x.split(BATCH), case.y.split(BATCH), strict=True))
        for name in missing:
            counted = zoo.Counting(case.model)
            records = poise.evaluate(counted, batches, attacks[name], examples=0)
            passes = {"forwards": str(counted.forwards), "backwards": str(counted.backwards)}
            found = {"y": records.y, "clean": records.clean, "attacked": records.attacked}
            write_tensors(files[name], found, passes)
            print(named(row), name, f"{records.attacked.amax(dim=1).mean():.4f}", flush=True)


def seen(folder, row):
    """Each image's confidence under each attack of a row, 1 where its label is lost; None if one lacks."""
    found, lost = {}, 0
    for name in contenders(row[1], row[2]):
        file = folder / f"{named(row)} {name}.safetensors".replace("/", "_")
        if not file.exists():
            return None
        tensors, _ = read_tensors(file)
        clean, attacked = tensors["clean"], tensors["attacked"]
        kept = clean.argmax(dim=1) == attacked.argmax(dim=1)
        found["clean"] = clean.amax(dim=1).double()
        found[name] = torch.where(kept, attacked.amax(dim=1), 1.0).double()
        lost += int((~kept).sum()) if name != "noise" else 0
    return {**found, "lost": lost}


def lowest(found, names):
    """Each image's lowest over some attacks."""
    return torch.stack([found[name] for name in names]).amin(dim=0)


def against(a, b):
    """The mean of a − b, its interval, and in how many images a is above and below by more than .005."""
    low, high = zoo.interval((a - b).float())
    return (
        f"{float((a - b).mean()):+.4f} ({low:+.4f} to {high:+.4f})",
        f"{float((a > b + 0.005).double().mean()):.1%}",
    )


def page(folder):
    """The two files."""
    means, pairs, budgets, rows = [], [], [], []
    for row in ROWS:
        found, name = seen(folder, row), named(row)
        if found is None:
            continue
        auto, paper = found["auto 20"], [n for n in found if n.startswith("ad") or n.startswith("co")]
        full = [n for n in paper if not n.endswith(" 6")]
        rows += [
            {"row": name, "attack": n, "mean": float(v.mean())} for n, v in found.items() if n != "lost"
        ]
        both = [" / ".join(mean(found[n]) for n in full if n.startswith(kind)) for kind in ("ad", "co")]
        ends = [mean(auto), f"{float(auto.median()):.4f}", f"{float(auto.max()):.4f}", str(found["lost"])]
        means.append([name, mean(found["clean"]), mean(found["noise"]), *both, *ends])
        best = min(full, key=lambda n: float(found[n].mean()))
        pairs.append([name, best, *against(auto, found[best]), *against(auto, lowest(found, full))])
        split = lowest(found, ["auto 7", "adaptive 6", "confsmooth 6"])
        suite = lowest(found, ["auto 20", *full])
        budgets.append([name, *against(auto, split), *against(found["auto 60"], suite)])
    facts = circumstances()
    text = HEAD.format(commit=facts["commit"], torch=facts["versions"]["torch"])
    text += "\n## Means\n\n" + Table(MEANS, means).markdown()
    text += "\n## auto against the paper's two, paired\n\n" + Table(PAIRS, pairs).markdown()
    text += "\n## One attack or three, at equal gradients\n\n" + Table(BUDGETS, budgets).markdown()
    write_text(DOCS / "power.md", text)
    pl.DataFrame(rows).write_csv(DOCS / "power.csv", float_precision=5)


def mean(values):
    """A mean, printed."""
    return f"{float(values.mean()):.4f}"


DOCS = Path(__file__).parent.parent / "docs"
ROW = "net, ball, images"
MEANS = [
    ROW,
    "clean",
    "noise",
    "Adaptive",
    "ConfSmooth",
    "auto",
    "its median",
    "its highest",
    "labels lost",
]
PAIRS = [
    ROW,
    "best of the two",
    "auto − it, 95 %",
    "auto worse",
    "auto − lowest of all, 95 %",
    "auto worse",
]
BUDGETS = [ROW, "auto 20 − split of 19, 95 %", "auto worse", "auto 60 − the suite, 95 %", "auto worse"]
HEAD = """# The attacks that lower confidence, with power

`POISE_TEST_DATA=... python benchmarks/power.py measure FOLDER`, then `page FOLDER`; commit {commit},
torch {torch}. Rows that are not whole yet are left out. `auto` has 20 gradients and 26 forwards, the
paper's two 23 and 24: about as many passes. Where there are two numbers, the first step is 5/255 and
.625 ε. *Noise*: the best of 10 draws of uniform signs at full length. *Worse*: images where `auto` is
above by more than .005. *Split*: each image's lowest over `auto` with 7 gradients and Adaptive and
ConfSmooth with 6 each; *suite*: over `auto` with 20 and all of the paper's with 23. Intervals: paired
bootstrap over images, 95 %. One net a row.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("folder", type=Path)
    one.add_argument("--only", default="", help="rows that hold this text")
    one.set_defaults(run=lambda args: measure(args.folder, args.only))
    two = commands.add_parser("page")
    two.add_argument("folder", type=Path)
    two.set_defaults(run=lambda args: page(args.folder))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.run(asked)

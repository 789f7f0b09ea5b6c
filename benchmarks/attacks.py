"""Every attack on every net of the zoo: writes docs/attacks.md and docs/attacks.csv.

    POISE_TEST_DATA=... python benchmarks/attacks.py [--images 200]
    POISE_TEST_DATA=... python benchmarks/attacks.py --nets digits --attacks auto ace --start 100
    POISE_TEST_DATA=... python benchmarks/attacks.py --images 80 --attacks cw deepfool --again "why"

With any of --start, --nets and --attacks the tables are printed and no file is written; with --again their
rows replace those in both files, and the page says so. Confidence, labels
and ECE are judged by `poise.evaluate`; forwards and gradients are counted at the net.
"""

import argparse
import datetime
import platform
import re
import time
from pathlib import Path

import polars as pl
import torch
import zoo

import poise
from poise import attacks, metrics, store
from poise.naming import take_known
from poise.report.tables import Table

STEPS, QUERIES = 20, 300  # gradients of the white-box attacks, queries of the black-box ones
TASKS = [  # net, eps, share of the images asked for
    ("mnist-standard", 0.03, 1.0),
    ("mnist-standard", 0.1, 1.0),
    ("mnist-standard", 0.3, 1.0),
    ("mnist-adversarial", 0.3, 1.0),
    ("digits", 0.1, 1.0),
    ("cifar10-resnet20", 1 / 255, 0.4),
    ("cifar10-resnet20", 0.03, 0.4),
    ("imagenet-lite0", 1 / 255, 0.04),
]
LOWERING = ("adaptive", "confsmooth", "auto")
MEMBERS = (*attacks.ATTACKS, "worst_case")  # the last: each image's lowest under the lowering ones
NEAREST = {name for name in attacks.ATTACKS if attacks.seeks_nearest(name)}
DONE = {}  # rows measured in this process
DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = [
    "attack",
    "before",
    "after",
    "median",
    "max",
    "label kept",
    "ECE",
    "→",
    "forwards",
    "gradients",
    "s",
]
HEAD = """# Attacks, measured

## auto, the attack to audit with

`auto` lowers the largest class probability and lets the walk cross the decision boundary; the label
decides only which points may be returned. At each step the logits are pulled along w = softmax(κz)
− softmax(gz): down for the largest classes, up for the others. With g = 1 this is nearly the
gradient of the log-confidence, meant for a tight budget; with g near 0 it leads to the uniform
distribution, meant for a loose one. Each image finds its own g: a class that leads for the first time
shows that one more can be tied, so g falls to a twentieth; when leaders come back, no more than those
tie, and g grows by half a step. At the end of the walk g goes to 1 everywhere. Steps shrink
geometrically, by a tenth more wherever the label is lost; momentum is .3 until the label is lost for
the first time, .6 from then on. Five last forward passes look for the boundary
between the best point that keeps the label and the best that does not. The result is never worse than
x in the attack's own forwards, keeps its label with a margin of 1e-4 in probability unless it is x
itself, and costs `steps` gradients and `steps` + 6 forwards (`pytest tests/test_auto.py`). It is not the
lowest for every single image: the line under each table says how often Adaptive or ConfSmooth is lower
by more than .005; `worst_case` takes the lowest of the three. [Its versions](versions.md) are compared on
fresh images.

Compare attacks on the same images only. On `mnist-standard` at ε = .1 the means of `auto` over the first
ten blocks of a hundred test images lie between .616 and .668:

```
export POISE_TEST_DATA=...
for s in $(seq 0 100 900); do
  python benchmarks/attacks.py --nets mnist-standard --attacks auto --images 100 --start $s
done
```

## Tables
"""


def make(name, eps):
    """The attack of that name and budget."""
    if name == "worst_case":
        return attacks.worst_case([attacks.build(n, eps=eps, steps=STEPS) for n in LOWERING])
    return attacks.build(name, **take_known(attacks.ATTACKS[name], eps=eps, steps=STEPS, queries=QUERIES))


def measure(case, name, eps):
    """One row, and the confidence of each image after the attack where its label is kept, else 1."""
    net = zoo.Counting(case.model)
    spent = {}

    class Timed:
        attack = make(name, eps)
        uses_labels = attack.uses_labels

        def __call__(self, model, x, y=None, *, generator=None):
            net.forwards = net.backwards = 0
            began = time.perf_counter()
            x_adv = self.attack(model, x, y, generator=generator)
            spent.update(
                seconds=time.perf_counter() - began, forwards=net.forwards, gradients=net.backwards
            )
            return x_adv

    records = poise.evaluate(net, [(case.x, case.y)], Timed())
    msp = records.attacked.max(dim=1).values
    row = {
        "attack": name,
        "before": metrics.confidence(records.clean),
        "after": metrics.confidence(records.attacked),
        "median": float(msp.median()),
        "max": float(msp.max()),
        "label_kept": float(records.kept.double().mean()),
        "ece_before": metrics.ece(records.clean, records.y),
        "ece_after": metrics.ece(records.attacked, records.y),
        **spent,
    }
    return row, torch.where(records.kept, msp, 1.0)


def section(net, eps, names, images, start):
    """The Markdown of one task, and its rows."""
    case = zoo.load(net, images=images, start=start)
    if not len(case.x):
        raise SystemExit(f"--start {start}: {net} has no test images from there on")
    rows, after = [], {}
    for name in names:
        bound = None if name in NEAREST else eps
        key = (net, name, bound, images, start)  # the nearest images are the same at every budget
        if key not in DONE:
            DONE[key] = measure(case, name, bound)
        row, after[name] = DONE[key]
        rows.append({"net": net, "eps": eps, "images": len(case.x), **row})
        print(net, f"{eps:.4f}", name, f"{row['after']:.4f}", f"{row['seconds']:.1f} s", flush=True)
    title = f"\n## {net}, ε = {eps:.4g}, {len(case.x)} images\n\n"
    return title + table(rows) + (lead(after) if set(LOWERING) <= set(names) else ""), rows


def table(rows):
    """The table in Markdown."""
    lines = []
    for r in rows:
        numbers = [f"{r[k]:.4f}" for k in ("before", "after", "median", "max")]
        numbers += [f"{r[k]:.3f}" for k in ("label_kept", "ece_before", "ece_after")]
        numbers += [str(r["forwards"]), str(r["gradients"]), f"{r['seconds']:.1f}"]
        lines.append([r["attack"], *numbers])
    return Table(COLUMNS, lines).markdown()


def lead(after):
    """How far `auto` is below the lower of Adaptive and ConfSmooth, in words."""
    lower = min(LOWERING[:2], key=lambda n: float(after[n].mean()))
    difference = after["auto"] - after[lower]
    low, high = zoo.interval(difference)
    beaten = (torch.minimum(after["adaptive"], after["confsmooth"]) < after["auto"] - 0.005).float().mean()
    return (
        f"\n`auto` minus `{lower}`: {float(difference.mean()):+.4f}, paired 95 % interval "
        f"[{low:+.4f}, {high:+.4f}]; images where Adaptive or ConfSmooth is lower by more than .005: "
        f"{float(beaten):.1%}.\n"
    )


def write(images, texts, rows):
    """The two files in docs/."""
    facts = store.circumstances()
    head = HEAD + (
        f"\n`POISE_TEST_DATA=... python benchmarks/attacks.py --images {images}` (it needs timm besides), "
        f"commit {facts['commit']}, torch {facts['versions']['torch']}, Python "
        f"{platform.python_version()}, {facts['device']}, one thread; L∞, {STEPS} steps, {QUERIES} "
        "queries, the first test images of each net. The seconds are of a shared machine. The rows are "
        "in attacks.csv too.\n"
    )
    store.write_text(DOCS / "attacks.md", head + "".join(texts))
    pl.DataFrame(rows).write_csv(DOCS / "attacks.csv")


def again(images, rows, why):
    """Put the rows in the place of the old ones, in both files, and say on the page when and why."""
    old = pl.read_csv(DOCS / "attacks.csv").to_dicts()
    new = {(r["net"], f"{r['eps']:.4g}", r["attack"]): r for r in rows}
    frame = [new.get((r["net"], f"{r['eps']:.4g}", r["attack"]), r) for r in old]
    lines, where = [], ("", "")
    for line in (DOCS / "attacks.md").read_text().splitlines(keepends=True):
        if found := re.match(r"## (.+), ε = (\S+), (\d+) images", line):
            where = found[1], found[2]
        row = new.get((*where, line.split("|")[1].strip() if line.startswith("| ") else ""))
        lines.append(line if row is None else table([row]).splitlines(keepends=True)[2])
    facts, names = store.circumstances(), dict.fromkeys(row["attack"] for row in rows)
    command = f'python benchmarks/attacks.py --images {images} --attacks {" ".join(names)} --again "..."'
    note = (
        f"\nRun again on {datetime.date.today():%Y-%m-%d}, commit {facts['commit']}: the rows of "
        f"{', '.join(f'`{name}`' for name in names)} (`{command}`). {why}\n"
    )
    place = next(i for i, line in enumerate(lines) if re.match(r"## .+, ε = ", line))
    store.write_text(DOCS / "attacks.md", "".join([*lines[: place - 1], note, "\n", *lines[place:]]))
    pl.DataFrame(frame).write_csv(DOCS / "attacks.csv")


def main():
    """Run the tasks; write the two files if they are all there."""
    nets = list(dict.fromkeys(net for net, *_ in TASKS))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="skip so many of each net's test images")
    parser.add_argument("--nets", nargs="+", choices=nets, default=nets, metavar="NAME")
    parser.add_argument("--attacks", nargs="+", choices=MEMBERS, default=list(MEMBERS), metavar="NAME")
    parser.add_argument("--again", metavar="WHY", help="replace these rows in the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts, rows = [], []
    for net, eps, share in TASKS:
        if net in options.nets:
            count = max(8, round(options.images * share))
            text, part = section(net, eps, options.attacks, count, options.start)
            texts.append(text)
            rows += part
    if options.again:
        again(options.images, rows, options.again)
    elif options.start or options.nets != nets or options.attacks != list(MEMBERS):
        print("".join(texts))
    else:
        write(options.images, texts, rows)


if __name__ == "__main__":
    main()

"""Every defense on MNIST with LeNet: trains, measures and writes docs/defenses.md and docs/defenses.csv.

    POISE_TEST_DATA=... python benchmarks/defenses.py [--images 50000] [--test 10000] [--out RUNS]

The same command resumes. `--part i/n` trains every n-th run, for several processes at once; `--table` only
writes the tables, of what has been trained.
"""

import argparse
import inspect
import json
import platform
from pathlib import Path

import numpy as np
import polars as pl
import torch
import zoo

from poise import defenses, store
from poise.data import ImageSet
from poise.naming import take_known
from poise.paper.referee import SLACK, referee
from poise.progress import silent
from poise.report.tables import Table
from poise.training import TrainJob, load, train
from poise.training.schedule import budget

BUDGETS = (0.1, 0.3)
EVERY = {name: (name, {}) for name in defenses.DEFENSES} | {
    "at-5": ("at", {"steps": 5}),
    "ccat": ("ccat", {"steps": 10}),  # of its 40, for the time
}
CLASSES = tuple("0123456789")
COLUMNS = {  # of the table: heading and decimals
    "accuracy": ("acc.", 3),
    "pgd_accuracy": ("PGD acc.", 3),
    "ece": ("ECE", 3),
    "before": ("conf.", 3),
    "after_dropout": ("Dropout", 3),
    "after_adaptive": ("Adaptive", 3),
    "after_confsmooth": ("ConfSmooth", 3),
    "after_worst": ("worst", 3),
    "stable": ("R", 3),
    "bound": ("½+R/2", 3),
    "raw": ("raw", 3),
    "k": ("k", 2),
    "at_k": ("at k", 3),
    "clean_at_k": ("clean at k", 3),
    "matched": ("matched", 3),
    "time": ("time", 2),
}
DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Defenses, measured

MNIST, LeNet, {epochs} epochs of {images:,} training images (drawn from the first 50,000), learning
rate {lr:g} (why not the paper's .1: [findings](findings.md)), the budget rising over the first epochs;
inner steps of 2.5 · ε / their number (UAT-Mix has its own); {test:,} test images; scales fitted on {held:,}
of the last 10,000 training images, which no net is trained on. Every attack has 20 gradients and the
budget that the defense was trained at. CCAT has 10 inner steps here, not its 40.

Columns: clean accuracy; accuracy under PGD; clean ECE; mean confidence of all images, clean, under
three attacks, and each image's lowest over these and `auto` (labels kept). Then, of right answers: R,
the share that PGD does not change; ½ + R/2, above which no worst-case confidence of a continuous map
can lie; raw confidence under `auto`; k, the factor on the logits of least validation NLL (below 1:
overconfident); under `auto` again at k; clean at k; under `auto` again where held-out right answers have a
mean confidence of .9. Time: of training, relative to AT's, on a shared machine. Mean ± standard deviation
over seeds, n in brackets.

**Raw numbers reward large logits; read *at k* and *matched*.** Nets that answer one class for everything
are counted as *collapsed* and left out of the means; a run that diverged, or was not finished yet, is
missing from n; † is above the bound by more than an attack's margin, so the attack failed.

`POISE_TEST_DATA=... python benchmarks/defenses.py {flags}`, commit {commit}, torch {torch}, Python
{python}, {device}, {threads} thread(s). All rows are in defenses.csv.
"""


def mnist(split: str, first: int, last: int, images: int) -> ImageSet:
    """So many of MNIST's images first ... last, each class in its share."""
    x, y = zoo.mnist(split)
    pixels = torch.from_numpy(x[first:last].copy())[:, None]
    labels = torch.from_numpy(y[first:last].astype(np.int64))
    return ImageSet("mnist", pixels, labels, CLASSES).subset(min(images, last - first))


def runs(args):
    """(eps, name, seed, folder) of every run, all defenses of the first seed first."""
    return [
        (eps, name, seed, args.out / f"{eps:g}" / f"{name}-{seed}")
        for seed in range(args.seeds)
        for eps in args.eps
        for name in args.only or EVERY
    ]


def make(args, eps, name, seed, folder):
    """Train one run, or find it; what failed is written down and left out."""
    base, options = EVERY[name]
    takes = inspect.signature(defenses.DEFENSES[base]).parameters
    if "step" in takes and base != "uat-mix":  # which scales its steps with eps itself
        options = {**options, "step": 2.5 * eps / options.get("steps", takes["steps"].default)}
    defense = defenses.build(base, **take_known(defenses.DEFENSES[base], eps=eps, **options))
    warm = {} if budget(defense) is None else {"eps_warmup": args.eps_warmup}
    job = TrainJob(
        data="mnist", model="lenet", defense=name, seed=seed, epochs=args.epochs, lr=args.lr, **warm
    )
    try:
        train(job, mnist("train", 0, 50_000, args.images), defense, folder, progress=silent)
    except store.InputError as error:
        print(folder, error, flush=True)


def numbers(args, run, test, held, eps):
    """One run's row; its numbers are kept, and looked up where nothing that they depend on has changed."""
    content = store.read_job(run)
    job, weights = content["job"], store.file_hash(run / "model.safetensors")
    facts = {"weights": weights, "test": test.fingerprint(), "held": held.fingerprint(), "eps": eps}
    file = args.out / "refereed" / f"{run.name}-{store.key_of(facts)}.json"
    if not file.exists():
        found = referee(load(run), test, held, eps=eps)
        file.parent.mkdir(exist_ok=True)
        store.write_json(file, found)
    row = {name: job[name] for name in ("defense", "defense_value", "model", "epochs", "seed")}
    row |= {"run": run.name, "seconds": content["seconds"], "collapsed": content.get("collapsed", False)}
    return row | json.loads(file.read_text())


def spread(values, digits):
    """Mean ± standard deviation; a dash where nothing was measured."""
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    if not len(known):
        return "-"
    told = f"{known.mean():.{digits}f}"
    return told if len(known) == 1 else f"{told} ± {known.std():.{digits}f}"


def table(frame):
    """A line a defense: mean ± standard deviation over its runs, the collapsed ones counted apart."""
    standard, lines = frame.filter(defense="at")["seconds"].mean(), []
    for (name,), part in frame.group_by("defense", maintain_order=True):
        sound = part.filter(~pl.col("collapsed"))
        fallen = len(part) - len(sound)
        shown = (sound if len(sound) else part).with_columns(time=pl.col("seconds") / pl.lit(standard))
        line = [f"{name} ({len(part)}{f', {fallen} collapsed' if fallen else ''})"]
        for column, (_, digits) in COLUMNS.items():
            over = column in ("raw", "at_k", "matched") and (shown[column] > shown["bound"] + SLACK).any()
            line.append(spread(shown[column], digits) + (" †" if over else ""))
        lines.append(line)
    return Table(["defense", *(heading for heading, _ in COLUMNS.values())], lines)


def section(args, eps):
    """One budget's rows and their Markdown."""
    finished = [
        folder for e, *_, folder in runs(args) if e == eps and (folder / "model.safetensors").exists()
    ]
    test, held = mnist("t10k", 0, 10_000, args.test), mnist("train", 50_000, 60_000, args.held)
    rows = [numbers(args, run, test, held, eps) for run in finished]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.with_columns(eps=pl.lit(eps)), f"\n## ε = {eps:g}\n\n{table(frame).markdown()}"


def main():
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--held", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--eps-warmup", type=float, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eps", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", choices=list(EVERY))
    parser.add_argument("--out", type=Path, default=Path("runs/defenses"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, args.part.split("/"))
    for number, run in enumerate(runs(args)):
        if not args.table and number % parts == part:
            make(args, *run)
            print(run[-1], flush=True)
    if parts > 1:
        return
    frames, texts = zip(*(section(args, eps) for eps in args.eps), strict=True)
    facts = store.circumstances()
    asked = {
        "images": args.images,
        "test": args.test,
        "held": args.held,
        "epochs": args.epochs,
        "lr": args.lr,
        "eps-warmup": args.eps_warmup,
        "seeds": args.seeds,
    }
    flags = " ".join(f"--{name} {value:g}" for name, value in asked.items())
    flags += f" --eps {' '.join(f'{eps:g}' for eps in args.eps)}"
    flags += f" --only {' '.join(args.only)}" if args.only else ""
    known = {k: facts[k] for k in ("commit", "device", "threads")}
    versions = {"torch": facts["versions"]["torch"], "python": platform.python_version()}
    store.write_text(
        DOCS / "defenses.md", HEAD.format(**asked, flags=flags, **known, **versions) + "".join(texts)
    )
    pl.concat(frames).write_csv(DOCS / "defenses.csv")


if __name__ == "__main__":
    main()

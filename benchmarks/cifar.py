"""The nets of docs/plan-cifar.md, judged: every attack on every net, image by image, then the page.

    python benchmarks/cifar.py judge RUN [RUN ...] --data FOLDER --out JUDGED [--chunks 0 1]
    python benchmarks/cifar.py page JUDGED                     # docs/cifar-tables.md and docs/cifar.csv

FOLDER holds cifar10_jpeg.npz and cifar10_exact.npz. Each attack on each 250 images is a file of its own, so
the same command goes on where it was stopped. Nothing is worked out before the page: the files hold labels,
probabilities before and after, and the passes.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
import zoo
from torch import nn

import poise
from poise.recalibration import k_for_confidence, logits_of, temperature
from poise.store import circumstances, read_tensors, write_tensors, write_text

EPS, STEPS, CHUNK, JUDGED, HELD = 0.03, 20, 250, 1000, 1000
MEAN = 0.9  # of held-out right answers, where nets are brought to one clean confidence
SLACK_IMAGES = 100
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
PAPER_STEP = 5 / 255
REFERRED = 0.2  # the share of clean images that every net refers, at the threshold that does it
DRAWS = 2000
DOCS = Path(__file__).parent.parent / "docs"
LOWERS = (
    "auto",
    "confsmooth",
    "adaptive",
    "confsmooth .625",
    "adaptive .625",
)  # whose lowest is the worst case


@dataclass(frozen=True)
class Task:
    """One attack on one net: which images, which attack, on which scale of its logits.

    Attributes:
        images: "jpeg" or "exact".
        attack: what to run.
        scale: of the logits: raw, "k" of least NLL on held-out images, or "mean" of one clean confidence.
        chunks: how many chunks there are.
        size: images in a chunk.
    """

    attack: Callable[[], poise.attacks.Attack]
    images: str = "jpeg"
    scale: str | float = 1.0
    chunks: int = JUDGED // CHUNK
    size: int = CHUNK


def build(name: str, **options: object) -> Callable[[], poise.attacks.Attack]:
    """An attack at the budget and with the gradients of the plan."""
    return lambda: poise.attacks.build(name, **{"eps": EPS, "steps": STEPS, **options})


TASKS: Mapping[str, Task] = {  # in this order
    "auto": Task(build("auto")),
    "confsmooth": Task(build("confsmooth", step=PAPER_STEP)),
    "pgd": Task(build("pgd", step=PAPER_STEP)),
    "auto at k": Task(build("auto"), scale="k"),
    "auto at mean": Task(build("auto"), scale="mean"),
    "adaptive": Task(build("adaptive", step=PAPER_STEP)),
    **{
        f"auto 200 at {scale:g}" if scale == 1 else f"auto at {scale:g}": Task(
            build("auto", steps=200 if scale == 1 else STEPS), scale=scale, chunks=1, size=SLACK_IMAGES
        )
        for scale in SCALES
    },
    "square": Task(
        lambda: poise.attacks.build("square_underconfidence", eps=EPS), chunks=1, size=SLACK_IMAGES
    ),
    "exact auto": Task(build("auto"), images="exact"),
    "exact confsmooth": Task(build("confsmooth", step=PAPER_STEP), images="exact"),
    "exact pgd": Task(build("pgd", step=PAPER_STEP), images="exact"),
    "apgd": Task(build("apgd_ce")),
    "confsmooth .625": Task(build("confsmooth", step=0.625 * EPS)),
    "adaptive .625": Task(build("adaptive", step=0.625 * EPS)),
    "dropout": Task(build("dropout", step=PAPER_STEP)),
    "dropout_accumulated .05": Task(build("dropout_accumulated", step=PAPER_STEP)),
    "dropout_accumulated .95": Task(build("dropout_accumulated", step=PAPER_STEP, keep_fraction=0.95)),
    "dropout_rescaled .05": Task(build("dropout_rescaled", step=PAPER_STEP)),
    "dropout_rescaled .95": Task(build("dropout_rescaled", step=PAPER_STEP, keep_fraction=0.95)),
    "dropout_cited .05": Task(build("dropout_cited", step=PAPER_STEP)),
    "dropout_cited .95": Task(build("dropout_cited", step=PAPER_STEP, keep_fraction=0.95)),
}


@cache
def images(data: Path, which: str) -> tuple[poise.data.ImageSet, poise.data.ImageSet]:
    """The images to judge on, in an order in which every chunk is like the rest, and the held-out ones."""
    test = poise.data.load(f"npz:{data / f'cifar10_{which}.npz'}", split="test")
    if which == "exact":
        chosen, held = test, test.take(torch.zeros(len(test), dtype=torch.bool))
    else:
        chosen, others = test.divide(JUDGED, seed=0)
        held = others.subset(HELD, seed=0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(chosen)))
    return chosen.take(order[:JUDGED]), held


def scales(net: nn.Module, data: Path) -> dict[str, float]:
    """The factors on the logits, fitted on held-out images: of least NLL, and to one clean confidence."""
    logits, y = logits_of(net, images(data, "jpeg")[1])
    right = logits.argmax(dim=1) == y
    return {"k": float(temperature(logits, y).k), "mean": k_for_confidence(logits[right], MEAN)}


def judge(run: Path, data: Path, out: Path, chunks: list[int], only: list[str] | None) -> None:
    """Whatever is missing of the run's files."""
    net = poise.load(run).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    fitted = scales(net, data)
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in TASKS.items():
        for chunk in range(task.chunks) if task.chunks == 1 else chunks:
            file = folder / f"{name}-{chunk}.safetensors"
            if file.exists() or (only and name not in only):
                continue
            chosen, _ = images(data, task.images)
            part = chosen.take(torch.arange(len(chosen))[chunk * task.size : (chunk + 1) * task.size])
            scale = fitted[task.scale] if isinstance(task.scale, str) else task.scale
            counted = zoo.Counting(net if scale == 1 else zoo.Scaled(net, scale))
            records = poise.evaluate(counted, part, task.attack(), examples=0)
            found = {"y": records.y, "clean": records.clean, "attacked": records.attacked}
            passes = {"forwards": counted.forwards, "backwards": counted.backwards}
            write_tensors(
                file, found, {key: str(value) for key, value in passes.items()} | {"scale": str(scale)}
            )
            print(run.name, name, chunk, f"{records.attacked.amax(dim=1).mean():.4f}", flush=True)


# The page


@dataclass(frozen=True, eq=False)
class Seen:
    """Some images of one net, before and after an attack: labels (n,), probabilities (n, k), places."""

    y: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    at: np.ndarray
    scale: float

    @property
    def right(self) -> np.ndarray:
        return self.clean.argmax(1) == self.y

    @property
    def kept(self) -> np.ndarray:
        return self.clean.argmax(1) == self.attacked.argmax(1)

    def scaled(self, k: float) -> "Seen":
        """The same points, had the net's logits k times their size (softmax(k log p))."""
        both = (
            softmax(k / self.scale * np.log(np.maximum(p, 1e-300))) for p in (self.clean, self.attacked)
        )
        return Seen(self.y, *both, self.at, k)


def softmax(z: np.ndarray) -> np.ndarray:
    """Rows that sum to 1."""
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Net:
    """What was found of one net: `net[task]` joins the chunks that are there, or is None."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.arm, self.defense, seed = re.fullmatch(r"(\w)-(.+)-(\d+)", folder.name).groups()
        self.seed = int(seed)
        self.found = {name: joined(folder, name, task) for name, task in TASKS.items()}

    def __getitem__(self, task: str) -> Seen | None:
        return self.found[task]

    def confidence(self, k: float | str | None, *, tasks=LOWERS) -> tuple[Seen, np.ndarray] | None:
        """Of every image that `auto` saw: the lowest confidence of its label over the tasks, at a scale.

        Points that were found at one scale of the logits count at every scale.
        """
        main = {None: "auto", "k": "auto at k", "mean": "auto at mean"}[k]
        base = self[main]
        if base is None:
            return None
        lowest = np.ones(JUDGED)
        for task in {main, *tasks}:
            seen = self[task]
            if seen is not None:
                seen = seen.scaled(base.scale)
                top = np.where(seen.kept, seen.attacked.max(1), 1.0)
                lowest[seen.at] = np.minimum(lowest[seen.at], top)
        return base, lowest[base.at]

    def slack(self) -> float | None:
        """How much lower longer runs get on some images: 200 gradients, five scales, and Square."""
        names = ("auto 200 at 1", *(f"auto at {scale:g}" for scale in SCALES if scale != 1), "square")
        longer, base = [self[name] for name in names], self["auto"]
        if base is None or any(seen is None for seen in longer):
            return None
        first = base.at < SLACK_IMAGES
        before = base.attacked[first].max(1)
        lowest = before.copy()
        for seen in longer:
            there = seen.scaled(1.0)
            lowest = np.minimum(lowest, np.where(there.kept, there.attacked.max(1), 1.0)[: len(lowest)])
        return float((before - lowest).mean())


def joined(folder: Path, name: str, task: Task) -> Seen | None:
    """The chunks of a task that were judged, in their order."""
    parts = []
    for chunk in range(task.chunks):
        file = folder / f"{name}-{chunk}.safetensors"
        if file.exists():
            tensors, facts = read_tensors(file)
            y, clean, attacked = (tensors[key].double().numpy() for key in ("y", "clean", "attacked"))
            at = chunk * task.size + np.arange(len(y))
            parts.append((y.astype(int), clean, attacked, at, float(facts["scale"])))
    if not parts:
        return None
    return Seen(*(np.concatenate([part[i] for part in parts]) for i in range(4)), parts[0][4])


def row(net: Net) -> dict[str, float | str | int | None]:
    """A net's numbers, None where nothing was found yet."""
    auto, pgd, apgd, exact = net["auto"], net["pgd"], net["apgd"], net["exact auto"]
    values: dict[str, float | str | int | None] = {"arm": net.arm, "defense": net.defense, "seed": net.seed}
    values["images"] = len(auto.y)
    values["accuracy"] = auto.right.mean()
    values["exact accuracy"] = None if exact is None else exact.right.mean()
    values["PGD accuracy"] = None if pgd is None else (pgd.attacked.argmax(1) == pgd.y).mean()
    values["APGD accuracy"] = None if apgd is None else (apgd.attacked.argmax(1) == apgd.y).mean()
    values["R"] = None if pgd is None else (pgd.attacked.argmax(1) == pgd.y)[pgd.right].mean()
    values["bound"] = None if pgd is None else 0.5 + values["R"] / 2
    values["MSP"] = auto.clean.max(1).mean()
    values["MSP - accuracy"] = values["MSP"] - values["accuracy"]
    values["ECE"] = ece(auto.clean, auto.y)
    values["AURC"] = aurc(auto.clean.max(1), auto.right)
    for task in ("adaptive", "confsmooth", "adaptive .625", "confsmooth .625", "auto"):
        values[task] = None if net[task] is None else net[task].attacked.max(1).mean()
    base, lowest = net.confidence(None)
    values["worst"] = lowest.mean()
    values["ECE under auto"] = ece(auto.attacked, auto.y)
    values["AURC worst"] = aurc(lowest, base.right)
    values["raw"] = lowest[base.right].mean()
    for scale in ("k", "mean"):
        found = net.confidence(scale)
        if found is not None:
            seen, low = found
            values[scale] = seen.scale
            values[f"clean at {scale}"] = seen.clean.max(1)[seen.right].mean()
            values[f"worst at {scale}"] = low[seen.right].mean()
        else:
            values |= {scale: None, f"clean at {scale}": None, f"worst at {scale}": None}
    stays, trusted = referral(net)
    values["kept at referral"] = stays[trusted].mean()
    values["slack"] = net.slack()
    return values


def ece(probs: np.ndarray, y: np.ndarray) -> float:
    return poise.metrics.ece(torch.from_numpy(probs), torch.from_numpy(y))


def aurc(confidence: np.ndarray, right: np.ndarray) -> float:
    top = torch.from_numpy(confidence)
    return poise.metrics.certified.aurc(top, top, torch.from_numpy(right))


def referral(net: Net) -> tuple[np.ndarray, np.ndarray]:
    """Who stays above, and who is right and above, the threshold that refers 20 % of the clean images."""
    base, lowest = net.confidence(None)
    top = base.clean.max(1)
    threshold = np.sort(top)[round(REFERRED * len(top))]
    return lowest >= threshold, base.right & (top >= threshold)


GROUNDS: Mapping[str, Callable[[Net], tuple[np.ndarray, np.ndarray] | None]] = {
    # of every image: a value and whether it counts; the mean of the values that count is compared
    "clean accuracy": lambda net: everyone(net["auto"], lambda seen: seen.right),
    "PGD accuracy": lambda net: everyone(net["pgd"], lambda seen: seen.attacked.argmax(1) == seen.y),
    "APGD accuracy": lambda net: everyone(net["apgd"], lambda seen: seen.attacked.argmax(1) == seen.y),
    "MSP under ConfSmooth": lambda net: everyone(net["confsmooth"], lambda seen: seen.attacked.max(1)),
    "MSP under `auto`": lambda net: everyone(net["auto"], lambda seen: seen.attacked.max(1)),
    "raw, right answers": lambda net: right_answers(net.confidence(None)),
    "at k, right answers": lambda net: right_answers(net.confidence("k")),
    "at one clean confidence, right answers": lambda net: right_answers(net.confidence("mean")),
    "kept at equal referral rate": referral,
}


def everyone(seen, value):
    """The value of all images."""
    return None if seen is None else (value(seen).astype(float), np.ones(len(seen.y), bool))


def right_answers(found):
    """The confidence, of right answers."""
    return None if found is None else (found[1], found[0].right)


def difference(first: Net, second: Net, ground: str) -> tuple[float, float, float] | None:
    """First minus second and its 95 % bootstrap interval, both nets on the same drawn images."""
    found = [GROUNDS[ground](net) for net in (first, second)]
    if any(one is None for one in found):
        return None
    n = min(len(value) for value, _ in found)
    (a, in_a), (b, in_b) = ((value[:n].astype(float), chosen[:n]) for value, chosen in found)

    def both(draw):
        return a[draw][in_a[draw]].mean() - b[draw][in_b[draw]].mean()

    rng = np.random.default_rng(0)
    draws = [both(rng.integers(n, size=n)) for _ in range(DRAWS)]
    return both(np.arange(n)), *np.quantile(draws, [0.025, 0.975])


def verdict(nets: list[tuple[Net, Net]], ground: str) -> tuple[str, list[tuple[float, float, float]]]:
    """The plan's rule: one sign on every seed, two of three intervals off 0, the mean above the slack."""
    found = [difference(*pair, ground) for pair in nets]
    found = [one for one in found if one is not None]
    if not found:
        return "not judged", found
    means = [mean for mean, _, _ in found]
    clear = sum(low > 0 or high < 0 for _, low, high in found)
    slack = 0.0 if "accuracy" in ground else max((net.slack() or 0.0) for pair in nets for net in pair)
    one_sign = all(mean > 0 for mean in means) or all(mean < 0 for mean in means)
    there = one_sign and 3 * clear >= 2 * len(found) and abs(np.mean(means)) > slack
    if not there:
        return "cannot tell", found
    return ("above" if means[0] > 0 else "below"), found


def page(judged: Path) -> None:
    """docs/cifar.md's tables and docs/cifar.csv, from whatever is judged."""
    nets = [net for folder in sorted(judged.iterdir()) if folder.is_dir() and (net := Net(folder))["auto"]]
    frame = pl.DataFrame([row(net) for net in nets], infer_schema_length=None)
    frame.write_csv(DOCS / "cifar.csv", float_precision=4)
    parts = [HEAD.format(commit=circumstances()["commit"], torch=torch.__version__)]
    for arm in sorted({net.arm for net in nets}):
        mine = [net for net in nets if net.arm == arm]
        parts += [
            f"## Arm {arm}\n",
            means(frame.filter(pl.col("arm") == arm)),
            *orders(mine),
            readings(mine),
        ]
    write_text(DOCS / "cifar-tables.md", "\n".join(parts))


HEAD = """# CIFAR-10, judged: the tables

Written by `python benchmarks/cifar.py page JUDGED` from the nets of the [plan](plan-cifar.md), commit
{commit}, torch {torch}; every net a line in cifar.csv. What they mean: [cifar](cifar.md).
"""

COLUMNS = (
    *(
        "accuracy",
        "exact accuracy",
        "PGD accuracy",
        "APGD accuracy",
        "R",
        "bound",
        "MSP",
        "MSP - accuracy",
        "ECE",
    ),
    *(
        "AURC",
        "adaptive",
        "confsmooth",
        "auto",
        "worst",
        "ECE under auto",
        "AURC worst",
        "raw",
        "k",
        "clean at k",
    ),
    *("worst at k", "clean at mean", "worst at mean", "kept at referral", "slack"),
)


def means(frame: pl.DataFrame) -> str:
    """A defense a column, a number a line: mean ± deviation over seeds."""
    defenses = sorted(frame["defense"].unique())
    lines = [f"| | {' | '.join(defenses)} |", "|---|" + "---:|" * len(defenses)]
    counts = [frame.filter(pl.col("defense") == name).height for name in defenses]
    lines.append(f"| nets | {' | '.join(map(str, counts))} |")
    for column in ("images", *COLUMNS):
        cells = []
        for name in defenses:
            values = frame.filter(pl.col("defense") == name)[column].drop_nulls().to_numpy()
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 and column != "images" else ""
            cells.append(
                "-" if not len(values) else f"{values.mean():.{0 if column == 'images' else 3}f}{spread}"
            )
        lines.append(f"| {column} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def orders(nets: list[Net]) -> list[str]:
    """Every defense against AT-5 on every ground: the verdict and each seed's difference."""
    at = {net.seed: net for net in nets if net.defense == "at5"}
    lines = ["| against AT-5 | ground | verdict | difference on each seed, 95 % |", "|---|---|---|---|"]
    for name in sorted({net.defense for net in nets} - {"at5"}):
        pairs = [(net, at[net.seed]) for net in nets if net.defense == name and net.seed in at]
        for ground in GROUNDS:
            told, found = verdict(pairs, ground)
            cells = ", ".join(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in found)
            lines.append(f"| {name} | {ground} | {told} | {cells} |")
    return ["\n".join(lines) + "\n"]


def readings(nets: list[Net]) -> str:
    """Dropout by every reading: the mean MSP and the share of labels that stay."""
    tasks = [task for task in TASKS if task.startswith("dropout")]
    defenses = sorted({net.defense for net in nets})
    lines = [f"| Dropout, as | {' | '.join(defenses)} |", "|---|" + "---:|" * len(defenses)]
    for task in tasks:
        cells = []
        for name in defenses:
            found = [net[task] for net in nets if net.defense == name and net[task] is not None]
            told = [(seen.attacked.max(1).mean(), seen.kept.mean()) for seen in found]
            cells.append("{:.3f}, {:.2f} kept".format(*np.mean(told, axis=0)) if told else "-")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("judge")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--chunks", type=int, nargs="+", default=list(range(JUDGED // CHUNK)))
    one.add_argument("--only", nargs="+", choices=list(TASKS))
    one.set_defaults(
        run=lambda args: [judge(run, args.data, args.out, args.chunks, args.only) for run in args.runs]
    )
    two = commands.add_parser("page")
    two.add_argument("judged", type=Path)
    two.set_defaults(run=lambda args: page(args.judged))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.run(asked)

"""Defenses compared so that scaling the logits cannot win: every net at its own k_NLL and at one mean."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

from poise import attacks, metrics, models, store, training
from poise.auditing.fitting import check_shape
from poise.checks import InputError
from poise.data import ImageSet
from poise.evaluation import Devices, choose_devices, evaluate
from poise.job_file import FLAG, NUMBER, NUMBERS, check_fields, or_none, read_json
from poise.labels import Given, in_order_of
from poise.progress import Progress, silent
from poise.recalibration import Recalibrated, Scale, k_for_confidence, logits_of, temperature
from poise.report.tables import Table
from poise.shapes import Images, Labels
from poise.training.outcome import model_of, read_finished

UNDER = ("dropout", "adaptive", "confsmooth", "auto")  # what the paper trains and judges by, and ours

# above the bound in earnest: beyond the lead that `auto` leaves a label, and half of the last digit shown
SLACK = attacks.auto().margin / 2 + 0.0005

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

HEADING = ["defense", *(heading for heading, _ in COLUMNS.values())]


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One net under attack, in numbers that a change of its logits' scale cannot improve unseen.

    Confidence is the mean MSP of all images (`before`, `after`), as in the paper's tables, and of
    the right answers alone (the rest), each image's label kept. For right answers the worst case is
    at most 1/2 + R/2 (`bound`): if a label can be flipped, a point on the way has an MSP of 1/2 or less,
    the model being a continuous map of the image (not so where it rounds, as bf16 or quantised nets do).
    """

    accuracy: float
    pgd_accuracy: float
    ece: float
    before: float
    after: Mapping[str, float]  # by attack; "worst" is each image's lowest
    ece_after: float  # under the worst
    stable: float  # R: right answers that PGD does not change, an upper estimate
    bound: float  # (1 + R) / 2
    raw: float  # right answers' confidence under `auto`
    k: float | None  # the logit multiplier of least validation NLL; below 1: overconfident
    at_k: float | None  # `auto` again, on k·z
    clean_at_k: float | None
    matched: float | None  # `auto` again, where held-out right answers have the given mean confidence
    collapsed: bool  # one class for every image


def honest(
    net: nn.Module,
    data: ImageSet,
    validation: ImageSet,
    *,
    eps: float,
    steps: int = 20,
    mean: float = 0.9,
    seed: int = 0,
    devices: Devices = (),
) -> Honest:
    """The net's numbers on `data`, its scale fitted on `validation`.

    Args:
        net: images in [0, 1] -> logits.
        data: test images.
        validation: other images, to fit k_NLL and the scale of equal confidence on.
        eps: the L∞ budget of every attack.
        steps: gradients of every attack.
        mean: the clean confidence of right answers to compare at.
        seed: of the attacks' draws.
        devices: that share the images, see `evaluate`.

    Raises:
        InputError: no images.
    """
    found = {
        name: evaluate(net, data, attack, seed=seed, examples=0, devices=devices)
        for name, attack in _attacks(eps, steps).items()
    }
    clean, y = found["pgd"].clean, found["pgd"].y
    msp, answer = clean.max(dim=1)
    right = answer == y
    stable = float((found["pgd"].attacked.argmax(dim=1) == y)[right].double().mean())
    lowest, at_worst = msp, clean
    for name in UNDER:
        r = found[name]
        top = torch.where(r.kept, r.attacked.max(dim=1).values, msp)
        at_worst = torch.where((top < lowest)[:, None], r.attacked, at_worst)
        lowest = torch.minimum(lowest, top)
    z, labels = logits_of(net, validation)
    k = _attempt(lambda: float(temperature(z, labels).k))
    known = z[z.argmax(dim=1) == labels]
    even = _attempt(lambda: k_for_confidence(known, mean)) if len(known) else None
    chosen = _only(data, right)

    def again(scale: float | None) -> tuple[float, float] | tuple[None, None]:
        if scale is None or not len(chosen):
            return None, None
        attack = attacks.auto(eps=eps, steps=steps)
        scaled = Recalibrated(net, Scale(scale))
        records = evaluate(scaled, chosen, attack, seed=seed, examples=0, devices=devices)
        return metrics.confidence(records.clean), metrics.confidence(records.attacked)

    clean_at_k, at_k = again(k)
    return Honest(
        accuracy=float(right.double().mean()),
        pgd_accuracy=metrics.accuracy(found["pgd"].attacked, y),
        ece=metrics.ece(clean, y),
        before=float(msp.double().mean()),
        after={name: metrics.confidence(found[name].attacked) for name in UNDER}
        | {"worst": float(lowest.double().mean())},
        ece_after=metrics.ece(at_worst, y),
        stable=stable,
        bound=(1 + stable) / 2,
        raw=float(found["auto"].attacked.max(dim=1).values[right].double().mean()),
        k=k,
        at_k=at_k,
        clean_at_k=clean_at_k,
        matched=again(even)[1],
        collapsed=bool((answer == answer[0]).all()),
    )


def compare(
    runs: Sequence[str | Path],
    data: ImageSet,
    validation: ImageSet,
    out: str | Path,
    *,
    code: Sequence[str] = (),
    eps: float,
    steps: int = 20,
    mean: float = 0.9,
    seed: int = 0,
    class_map: Given | None = None,
    devices: int | None = None,
    accelerator: str = "auto",
    progress: Progress = silent,
) -> pl.DataFrame:
    """One row a trained run, kept in the folder `out`: the same call again goes on from there.

    Columns: defense, defense_value (its whole configuration), model, epochs, seed, run (the folder's
    name), seconds of training, and those of `Honest`. `code` names the models once more that are code or
    downloads; see `poise.load`. Labels are matched by name, and by `class_map` (`poise.labels`).

    Raises:
        InputError: a run that has not finished or is of other data, or no held-out images.
    """
    job = {
        "kind": "comparison",
        "data": data.fingerprint(),
        "validation": validation.fingerprint(),
        "eps": eps,
        "steps": steps,
        "mean": mean,
        "seed": seed,
        "attacks": {name: repr(attack) for name, attack in _attacks(eps, steps).items()},
    }
    job |= {"class_map": dict(class_map)} if class_map else {}
    if job["data"] == job["validation"]:
        raise InputError("the scales must be fitted on other images than those compared on")
    folder, rows = store.open_run(Path(out), job), []
    for done, run in enumerate(runs):
        progress("compare", done, len(runs), Path(run).name)
        content, weights = read_finished(run)
        facts = content["job"]
        check_shape(run, facts, data)
        classes, who = facts["classes"], f"the model in {str(run)!r}"
        sets = [
            in_order_of(part, classes, outputs=len(classes), given=class_map, who=who)
            for part in (data, validation)
        ]
        name = model_of(run, facts, code)
        source = f"-{models.code_digest(name)}" if models.is_code(name) else ""
        file = folder / f"{content['key']}-{store.file_hash(weights)}{source}.json"
        if not file.exists():
            net = training.load(run, code=name)
            homes = choose_devices(net, devices=devices, accelerator=accelerator)
            numbers = honest(
                net.to(homes[0]),
                *sets,
                eps=eps,
                steps=steps,
                mean=mean,
                seed=seed,
                devices=homes,
            )
            _note_circumstances(folder, homes)
            with store.writing(folder):
                store.write_json(file, {k: None if v != v else v for k, v in asdict(numbers).items()})
        numbers_read = _numbers(file)
        after = {f"after_{name}": value for name, value in numbers_read.pop("after").items()}
        rows.append(
            {name: facts[name] for name in ("defense", "defense_value", "model", "epochs", "seed")}
            | {"run": Path(run).name, "seconds": content["seconds"]}
            | numbers_read
            | after
        )
    progress("compare", len(runs), len(runs))
    return pl.DataFrame(rows, infer_schema_length=None)


def _numbers(file: Path) -> dict[str, Any]:
    """The `Honest` in a file.

    Raises:
        InputError: the file is damaged.
    """
    content = read_json(file)
    kinds = dict.fromkeys((f.name for f in fields(Honest)), or_none(NUMBER))
    check_fields(file, content, kinds | {"after": NUMBERS, "collapsed": FLAG})
    check_fields(file, content["after"], dict.fromkeys((*UNDER, "worst"), NUMBER))
    return content


def _note_circumstances(folder: Path, homes: Sequence[torch.device]) -> None:
    """Note where the first net was compared; warn where this one is compared otherwise."""
    if not any(file.name != "job.json" for file in folder.glob("*.json")):
        store.note(folder, devices=len(homes), **store.circumstances(homes[0]))
    elif differ := store.join(folder, device=homes[0], devices=len(homes)):
        then, now = (", ".join(words) for words in zip(*differ, strict=True))
        warnings.warn(f"{str(folder)!r} was on {then} and goes on with {now}", stacklevel=3)


def _attacks(eps: float, steps: int) -> dict[str, attacks.Attack]:
    """PGD with steps long enough to cross the ball, and the attacks that lower the confidence."""
    pgd = attacks.pgd(eps=eps, steps=steps, step=max(5 / 255, 2.5 * eps / max(steps, 1)))
    return {"pgd": pgd} | {name: attacks.build(name, eps=eps, steps=steps) for name in UNDER}


def _lines(frame: pl.DataFrame) -> list[list[str]]:
    """The table as text under HEADING, a line a configuration: mean ± standard deviation over its runs.

    Their number stands in brackets. Nets that answer one class for everything are counted there and
    left out of the means, unless there are no others. † marks a confidence above the bound, by
    more than the margin that attacks leave a label, which proves that the attack has failed. Time is
    that of training, relative to the one `at` there is.
    """
    kinds = ["defense", "defense_value", "model", "epochs"]
    names = frame.select(kinds).unique()["defense"].value_counts()
    alone = {name for name, count in names.rows() if count == 1}
    standard = frame.filter(pl.col("defense") == "at")["seconds"].mean() if "at" in alone else None
    lines = []
    for (name, *_), part in frame.group_by(kinds, maintain_order=True):
        sound = part.filter(~pl.col("collapsed"))
        fallen = len(part) - len(sound)
        mark = f", {fallen} collapsed" if fallen else ""
        label = str(name) if name in alone else f"{name} {part['run'][0]}"
        shown = sound if len(sound) else part
        shown = shown.with_columns(time=pl.col("seconds") / pl.lit(standard, dtype=pl.Float64))
        numbers = [
            _spread(shown[column], digits) + _dagger(shown, column)
            for column, (_, digits) in COLUMNS.items()
        ]
        lines.append([f"{label} ({len(part)}{mark})", *numbers])
    return lines


def _dagger(part: pl.DataFrame, column: str) -> str:
    """A dagger where a confidence of right answers is above what any successful attack leaves."""
    if column not in ("raw", "at_k", "matched"):
        return ""
    return " †" if (part[column].cast(pl.Float64) > part["bound"] + SLACK).any() else ""


def table(frame: pl.DataFrame) -> Table:
    """What `compare` found, as it is printed."""
    return Table(HEADING, _lines(frame))


def _spread(values: pl.Series, digits: int) -> str:
    """Mean ± standard deviation; a dash where nothing was measured."""
    known = values.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    if len(known) == 0:
        return "-"
    mean = f"{known.mean():.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {known.std(ddof=1):.{digits}f}"


def _only(data: ImageSet, chosen: torch.Tensor) -> list[tuple[Images, Labels]]:
    """The chosen images, in batches."""
    index = chosen.nonzero()[:, 0]
    return list(data.batches(index)) if len(index) else []


def _attempt(fit: Callable[[], float]) -> float | None:
    """What a fit finds, or None where there is nothing to find (all answers right, one constant output)."""
    try:
        return fit()
    except InputError:
        return None

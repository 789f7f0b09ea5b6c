"""`poise evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from poise.checks import InputError, check_number
from poise.cli.parsing import check_asked
from poise.cli.show import show
from poise.naming import check_taken, known_name, named_options
from poise.preparation import AS_IT_IS, Preparation
from poise.progress import bars

if TYPE_CHECKING:
    from poise.attacks import Attack
    from poise.auditing.timing import Estimate


def evaluate(
    *,
    model: str,
    data: str,
    out: Path,
    attacks: tuple[str, ...] = ("pgd", "adaptive", "confsmooth", "auto"),
    eps: float | None = None,
    step: float | None = None,
    steps: int | None = None,
    keep: Literal["last", "best"] | None = None,
    norm: str | None = None,
    option: tuple[str, ...] = (),
    weights: str | None = None,
    code: str | None = None,
    class_map: tuple[str, ...] = (),
    images: int | None = None,
    split: Literal["train", "test", "val"] = "test",
    recalibrate: Literal["temperature", "platt", "vector", "isotonic", "spline"] | None = None,
    held_out: int | None = None,
    fast: Literal["float32", "bf16"] | None = None,
    batch_size: int = 128,
    devices: int | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    max_hours: float | None = None,
    seed: int = 0,
    threshold: float = 0.5,
    root: Path = Path("data"),
    read: Preparation = AS_IT_IS,
) -> None:
    """Attack a model and report what happened to its confidence; the same command again resumes.

    Args:
        model: Run folder of a training, or a model's name with --weights.
        data: Data set, see `poise list`.
        out: Run folder; the report goes there too.
        attacks: Attacks, see `poise list`.
        eps: Budget in pixels of [0, 1], 0.03 by default. Beside other attacks, cw and deepfool look for
            the nearest image at any distance; alone they take it as the longest one, in their own norm.
        step: First step's size, in pixels of [0, 1]; 5/255 by default.
        steps: Gradient steps; 20 by default.
        keep: Return the last point or the best; each attack's own choice by default.
        norm: Norm of the budget: linf, l2 or l1.
        option: Options of one attack alone, ATTACK.NAME=VALUE, such as square.queries=5000; they go
            before what all get.
        weights: File of weights for a model given by name, or "pretrained" for the published ones.
        code: Model of the run folder once more, where it is FILE.py:FUNCTION or a download: that is only
            run or fetched if it is named here.
        class_map: What the data's classes are called in the model, DATA=MODEL ..., by its names or its
            numbers from 0; classes of equal names are matched by themselves.
        images: Attack so many, the same share of every class; all by default.
        split: Part of the data set.
        recalibrate: Fit this map of the logits first, on held-out images, and attack the result.
        held_out: So many images of the split to fit it on, a third and at most 500 by default; they are
            not attacked.
        fast: Attack a prepared copy (BatchNorm folded, convolutions packed; with bf16 the first steps in
            low precision); every label is checked on the model itself.
        batch_size: Images a batch.
        devices: So many GPUs, each with a copy of the model; all in sight by default.
        accelerator: auto takes GPUs where there are some.
        max_hours: Ask first if all this is estimated to take longer, and refuse where nobody can answer.
        seed: Of the attacks' draws and of the choice of images.
        threshold: Confidence under which an answer is referred to a person.
        root: Folder of downloaded data sets.
        read: How images are brought to one shape, and which are left out; by default as the run's training
            images were, or as the model's own pipeline does.
    """
    from poise import data as sets
    from poise.auditing.audit import audit, set_aside
    from poise.auditing.fitting import preparation_for
    from poise.labels import pairs

    check_asked(out, seed=seed, images=images, held_out=held_out, batch_size=batch_size, steps=steps)
    check_number("threshold", threshold, 0, 1)
    if not attacks:
        raise InputError("name at least one attack: --attacks auto (poise list has them all)")
    if held_out is not None and recalibrate is None:
        raise InputError("--held-out sets images aside for --recalibrate, which is not given: give both")
    if max_hours is not None:
        check_number("max_hours", max_hours, 0)
    chosen = _attacks(attacks, option, eps=eps, step=step, steps=steps, keep=keep, norm=norm)
    if fast is not None:
        from poise.fast import accelerated

        chosen = {name: accelerated(attack, precision=fast) for name, attack in chosen.items()}
    matched, read = pairs(class_map), read.over(preparation_for(model, weights))
    source = sets.load(data, split=split, seed=seed, batch_size=batch_size, root=root, preparation=read)
    held = None
    if recalibrate is not None:
        held, source = set_aside(source, held_out, seed=seed)
    source = source.subset(images, seed=seed)
    print(f"{len(source)} images x {', '.join(chosen)}: each is timed on a few images first", flush=True)
    with bars() as progress:
        run = audit(
            model,
            source,
            chosen,
            out,
            weights=weights,
            code=code,
            class_map=matched,
            recalibrate=recalibrate,
            held_out=held,
            seed=seed,
            devices=devices,
            accelerator=accelerator,
            progress=progress,
            on_estimate=lambda estimate: _agree(estimate, max_hours=max_hours),
        )
    show([run], out, threshold=threshold)


def _attacks(
    names: tuple[str, ...], texts: tuple[str, ...], **flags: float | str | None
) -> dict[str, Attack]:
    """The attacks by name, each with the flags and with the options that are its own.

    Raises:
        InputError: a flag or an option that an attack does not take: its table would seem to be of it.
    """
    from poise import attacks as known

    table = {**known.ATTACKS, **known.READINGS}
    own: dict[str, list[str]] = {known_name(table, name, "attack"): [] for name in names}
    for text in texts:
        name, _, rest = text.partition(".")
        if "=" in name or known_name(table, name, "attack") not in own:
            raise InputError(f"--option {text} is for none of {', '.join(own)}: write ATTACK.NAME=VALUE")
        own[known_name(table, name, "attack")].append(rest)
    nearest = [name for name in own if known.seeks_nearest(name)]
    chosen = {}
    for name, own_texts in own.items():
        given = {flag: value for flag, value in flags.items() if value is not None}
        if name in nearest and len(nearest) < len(own) and given.pop("eps", None) is not None:
            print(
                f"{name}: at any distance; --option {name}.eps=NUMBER bounds it in its own norm", flush=True
            )
        other = next((other for other in own if other != name), None)
        way_out = f"; --option {other}.NAME=VALUE is for {other} alone" if other else ""
        check_taken(table[name], f"attack {name!r}", given, spelled="--", way_out=way_out)
        chosen[name] = known.build(name, **given | named_options(table[name], own_texts))
    return chosen


def _agree(estimate: Estimate, *, max_hours: float | None) -> None:
    """Print the plan; where it is beyond the limit, go on only if a person says so.

    Raises:
        InputError: the limit is passed, and nobody is there or agrees.
    """
    from poise.auditing.timing import duration, plan, work

    print(plan(estimate), flush=True)
    if max_hours is None or estimate.hours <= max_hours:
        return
    about = duration(3600 * estimate.hours)
    if sys.stdin.isatty():
        asked = f"about {about}, and --max-hours is {max_hours:g}; go on? [y/N] "
        if input(asked).strip().lower() in ("y", "yes"):
            return
    raise InputError(
        f"{work(estimate)} would take about {about} by the first images of each attack, and --max-hours is "
        f"{max_hours:g}: take fewer --images or --steps, --fast float32, or a larger --max-hours"
    )

"""`poise evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from poise.checks import InputError, check_number
from poise.cli.show import show
from poise.cli.sources import Flat, Source
from poise.naming import check_taken, known_name, named_options
from poise.progress import bars
from poise.user_code import is_own

if TYPE_CHECKING:
    from poise.attacks import Attack
    from poise.auditing.timing import Estimate
    from poise.certify import Certificate


def evaluate(
    *,
    model: str,
    source: Flat[Source],
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
    recalibrate: Literal["temperature", "platt", "vector", "isotonic", "spline"] | None = None,
    fast: Literal["float32", "bf16"] | None = None,
    certify: Literal["ibp", "crown"] | None = None,
    max_hours: float | None = None,
    threshold: float = 0.5,
) -> None:
    """Attack a model and report what happened to its confidence; the same command again resumes.

    Args:
        model: Run folder of a training, or a model's name with --weights.
        source: What it is attacked on.
        out: Run folder; the report goes there too.
        attacks: Attacks, see `poise list`; FILE.py:NAME is an attack of your own, or what makes it of its
            options, and that file is run.
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
        recalibrate: Fit this map of the logits first, on held-out images, and attack the result.
        fast: Attack a prepared copy (BatchNorm folded, in the faster memory layout; with bf16 the first
            steps in low precision); every label is checked on the model itself.
        certify: Also bound from below what any change within --eps and --norm does to the confidence; every
            attack is checked against the bounds.
        max_hours: Ask first if all this is estimated to take longer, and refuse where nobody can answer.
        threshold: Confidence under which an answer is referred to a person.
    """
    from poise.auditing.audit import audit
    from poise.devices import at_work, sharing
    from poise.labels import pairs
    from poise.resources import using

    source.check(out, steps=steps)
    check_number("threshold", threshold, 0, 1)
    if not attacks:
        raise InputError("name at least one attack: --attacks auto (poise list has them all)")
    if source.held_out is not None and recalibrate is None:
        raise InputError("--held-out sets images aside for --recalibrate, which is not given: give both")
    if max_hours is not None:
        check_number("max_hours", max_hours, 0)
    chosen = _attacks(attacks, option, eps=eps, step=step, steps=steps, keep=keep, norm=norm)
    bounds = {} if certify is None else _bounds(certify, chosen, eps=eps, norm=norm)
    if fast is not None:
        from poise.fast import accelerated

        chosen = {name: accelerated(attack, precision=fast) for name, attack in chosen.items()}
    matched = pairs(source.class_map)
    held, images = None, source.load(model, weights)
    if recalibrate is not None:
        held, images = source.set_aside(images)
    images = source.draw(images)
    fabric = sharing(devices=source.devices, accelerator=source.accelerator)
    with at_work(fabric), using(source.threads), bars() as progress:
        if fabric.is_global_zero:
            told = f"{len(images)} images x {', '.join(chosen)}: each is timed on a few images first"
            print(told, flush=True)
        run = audit(
            model,
            images,
            chosen,
            out,
            weights=weights,
            code=code,
            class_map=matched,
            recalibrate=recalibrate,
            held_out=held,
            certificates=bounds,
            seed=source.seed,
            fabric=fabric,
            progress=progress,
            on_estimate=lambda estimate: _agree(estimate, max_hours=max_hours),
        )
    if fabric.is_global_zero:
        show([run], out, threshold=threshold)


def _bounds(
    name: str, chosen: dict[str, Attack], *, eps: float | None, norm: str | None
) -> dict[str, Certificate]:
    """The certificate of each attack that has a budget: the same, worked out once a batch.

    Raises:
        InputError: no --eps, another norm than linf and l2, or an attack without a budget.
    """
    from poise.certify import CERTIFICATES, remembered

    if eps is None:
        raise InputError("--certify bounds the confidence within a budget: give --eps, e.g. --eps 8/255")
    if far := [attack for attack, made in chosen.items() if made.aim.nearest]:
        raise InputError(
            f"--certify needs attacks within --eps, and {far[0]} goes any distance: leave it out"
        )
    certificate = remembered(CERTIFICATES[name](eps=eps, norm=norm or "linf"))
    return dict.fromkeys(chosen, certificate)


def _attacks(
    names: tuple[str, ...], texts: tuple[str, ...], **flags: float | str | None
) -> dict[str, Attack]:
    """The attacks by name, each with the flags and with the options that are its own.

    Raises:
        InputError: a flag or an option that an attack does not take: its table would seem to be of it.
    """
    factories = _factories(names)
    own: dict[str, list[str]] = {name: [] for name in factories}
    for text in texts:
        name, _, rest = text.partition(".")
        if "=" in name or (name := name if name in own else _spelt(name)) not in own:
            raise InputError(f"--option {text} is for none of {', '.join(own)}: write ATTACK.NAME=VALUE")
        own[name].append(rest)
    flags = {flag: value for flag, value in flags.items() if value is not None}
    chosen: dict[str, Attack] = {}
    given = {name: named_options(factories[name], own[name]) for name in own}
    for name, make in factories.items():
        other = next((other for other in own if other != name), None)
        way_out = f"; --option {other}.NAME=VALUE is for {other} alone" if other else ""
        check_taken(make, f"attack {name!r}", flags, spelled="--", way_out=way_out)
        chosen[name] = make(**flags | given[name])
    nearest = [name for name, attack in chosen.items() if attack.aim.nearest]
    if len(nearest) < len(chosen) and flags.pop("eps", None) is not None:
        for name in nearest:
            told = f"{name}: at any distance; --option {name}.eps=NUMBER bounds it in its own norm"
            print(told, flush=True)
            chosen[name] = factories[name](**flags | given[name])
    return chosen


def _factories(names: tuple[str, ...]) -> dict[str, Callable[..., Attack]]:
    """What makes each attack, by the name that it gets in the run: of FILE.py:NAME it is NAME.

    Raises:
        InputError: two attacks would get the same name.
    """
    from poise import attacks as known

    found: dict[str, Callable[..., Attack]] = {}
    for name in names:
        code = is_own(name, "attacks", (*known.ATTACKS, *known.READINGS))
        own = name.rpartition(":")[2] if code else _spelt(name)
        if code and (own in found or own in known.ATTACKS or own in known.READINGS):
            raise InputError(
                f"{name}: {own!r} is another attack's name too: give yours another in its file"
            )
        found[own] = known.factory(name)
    return found


def _spelt(name: str) -> str:
    """The attack's name as the table spells it."""
    from poise import attacks as known

    return known_name({**known.ATTACKS, **known.READINGS}, name, "attack")


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

"""`poise.audit`: the worst case of one model or several, kept in a folder, and what it says."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from poise import data as sets
from poise import labels, store
from poise.attacks import Attack
from poise.auditing import page, pairs
from poise.auditing.affected import Affected, attack_again
from poise.auditing.answers import Evidence, Seen, answers
from poise.auditing.audit import PROBE, Loaded, load_model, set_aside, threads_for
from poise.auditing.audit import audit as attack_all
from poise.auditing.fitting import match_labels
from poise.auditing.outcome import Audit, Model
from poise.auditing.suite import (
    EPS,
    LEFT_OUT,
    Part,
    Size,
    budgets,
    cost,
    gives_gradients,
    size_named,
    suite,
)
from poise.auditing.timing import duration, pass_costs
from poise.certify import CERTIFICATES
from poise.checks import InputError, check_count, check_number
from poise.data import ImageSet
from poise.data.own import from_batches
from poise.devices import at_work, by_first, sharing
from poise.naming import lookup
from poise.progress import Progress, silent
from poise.recalibration import Recalibrated, Scale
from poise.report.runs import records_of
from poise.resources import using
from poise.shapes import Images, Labels

THRESHOLD = 0.5
OF_TWO = 0.75  # halfway between chance and certainty: of two classes no confidence is below .5
LEAST = 100  # images below which a time limit takes steps away first
FEWEST = 10  # steps
LONGER = 10  # times the steps, on a sample

Given = str | nn.Module
Data = str | ImageSet | Iterable[tuple[Images, Labels]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every model of one audit is put to."""

    data: ImageSet
    held_out: ImageSet | None
    epsilons: tuple[float, ...]
    size: Size
    threshold: float
    seed: int
    several: bool
    certificate: str | None = None
    fabric: Fabric
    options: Mapping[str, Any]  # of `auditing.audit.audit`: fabric, progress and the like


def audit(
    model: Given | Sequence[Given] | Mapping[str, Given],
    data: Data,
    *,
    threshold: float | None = None,
    eps: float | Sequence[float] = EPS,
    size: str = "quick",
    out: str | Path | None = None,
    images: int | None = None,
    held_out: int | None = None,
    time_limit: float | None = None,
    certificate: str | None = None,
    seed: int = 0,
    weights: str | Path | None = None,
    code: str | None = None,
    class_map: labels.Given | None = None,
    fabric: Fabric | None = None,
    command: str | None = None,
    progress: Progress = silent,
    on_choice: Callable[[str], object] = lambda text: None,
) -> Audit:
    """What can be done to the confidence of a model's answers: the worst case of a suite of attacks.

    With several models they are compared as well. The same call with the same `out` goes on where it was
    stopped. The images on which the temperature is fitted are set aside first and not attacked.

    Args:
        model: whatever `poise.models.load` takes, a run folder or a network; or several of them, by name
            or in a list.
        data: whatever `poise.data.load` takes, an image set, or batches (x in [0, 1], y).
        threshold: the confidence from which on an answer is trusted; others are referred to a person. By
            default .5, of two classes .75.
        eps: the budgets: by how much every pixel may change, in units of [0, 1].
        size: "quick", "standard" or "thorough"; `poise.auditing.suite.sizes_table()` says what they do.
        out: the folder for the records; by default they are not kept.
        images: attack so many, where not as many as the size has.
        held_out: images to fit the temperature on, by default a third and at most 500.
        time_limit: seconds; the most images and steps that fit are taken, by tries on the first images.
        certificate: "ibp" or "crown": also bounds from below what any change can do, where the layers of
            the model can be read (`poise.certify`).
        seed: of the attacks' draws and of the choice of images.
        weights: a file of weights, for one model given by its name.
        code: the model's name once more, for a run whose model is code or a download.
        class_map: the model's class, by its name or number, for some of the data's.
        fabric: the processes that share out the work, see `poise.devices.sharing`; one by default. All must
            see `out`, and all get the result.
        command: as it was typed, for the page.
        progress: told how far each attack is.
        on_choice: told what was chosen to meet the time limit.

    Raises:
        InputError: as `poise.models.load`, `poise.data.load`; a threshold or budget that cannot be; `out`
            holds another audit.
    """
    if threshold is not None:
        check_number("threshold", threshold, 0, 1, hint="it is a confidence")
    epsilons = budgets([eps] if isinstance(eps, int | float) else list(eps))
    if certificate is not None:
        lookup(CERTIFICATES, certificate, "certificate")
    chosen, models = size_named(size), _named(model)
    if images is not None:
        check_count("images", images, 1)
    fabric = fabric or sharing()
    with at_work(fabric), ExitStack() as stack:
        source = _images(data, seed)
        held, source = set_aside(source, held_out, seed=seed) if len(source) > 2 else (None, source)
        wanted = images or chosen.images
        source = source.subset(None if wanted is None else min(wanted, len(source)), seed=seed)
        if threshold is None:
            threshold = THRESHOLD if len(source.classes) > 2 else OF_TWO
        nets = {
            name: load_model(given, source, weights=weights, code=code, class_map=class_map)
            for name, given in models.items()
        }
        asked = Asked(
            data=source,
            held_out=held,
            epsilons=epsilons,
            size=chosen,
            threshold=threshold,
            seed=seed,
            several=len(nets) > 1,
            certificate=certificate,
            fabric=fabric,
            options={"class_map": class_map, "progress": progress, "seed": seed, "fabric": fabric},
        )
        folder = None if out is None else Path(out)
        if folder is None:
            temporary = by_first(fabric, lambda: stack.enter_context(tempfile.TemporaryDirectory()))
            folder = Path(temporary) / "audit"
        known = by_first(fabric, lambda: store.threads_of(folder))
        stack.enter_context(using(lambda: known or max(threads_for(n.net, source) for n in nets.values())))
        asked = _within(asked, nets, folder, size, time_limit, on_choice)
        found = _audited(asked, nets, folder, kept=out is not None, command=command)
        fabric.barrier()  # the others read what the first one may take away
        return found


def _within(
    asked: Asked,
    nets: Mapping[str, Loaded],
    folder: Path,
    size: str,
    time_limit: float | None,
    on_choice: Callable[[str], object],
) -> Asked:
    """The audit's folder, and what is asked once the time limit has had its say: the first time only."""
    whole = asked.data
    job = {
        "kind": "suite",
        "models": {name: dict(net.facts) for name, net in nets.items()},
        "data": whole.name,
        "images": len(whole),
        "fingerprint": whole.fingerprint(),
        "held_out": None if asked.held_out is None else asked.held_out.fingerprint(),
        "classes": list(whole.classes),
        "eps": list(asked.epsilons),
        "size": size,
        "seed": asked.seed,
        "time_limit": time_limit,
        "certificate": asked.certificate,
    }

    def choose() -> dict[str, int] | None:
        store.open_run(folder, job)
        known: dict[str, int] | None = store.read_job(folder).get("chosen")
        if known is None and time_limit is not None:
            known = _choice(asked, nets, time_limit)
            store.note(folder, chosen=known)
        return known

    if time_limit is not None:
        check_number("time_limit", time_limit, 1, hint="in seconds")
    known = by_first(asked.fabric, choose)
    say = on_choice if asked.fabric.is_global_zero else lambda text: None
    if time_limit is None or known is None:
        if not (folder / "audit.json").exists():
            about = duration(_costs(asked, nets)(len(whole)))
            say(f"{len(whole)} images: about {about} if not begun before")
        return asked
    images, steps, queries = (int(known[name]) for name in ("images", "steps", "queries"))
    say(
        f"to end within {time_limit / 60:.3g} min: {images} of {len(whole)} images, {steps} steps, "
        f"{queries} queries"
    )
    fewer = replace(asked.size, steps=steps, queries=queries, images=images)
    return replace(asked, data=whole.subset(images, seed=asked.seed), size=fewer)


def _choice(asked: Asked, nets: Mapping[str, Loaded], seconds: float) -> dict[str, int]:
    """As many images as fit; where that is fewer than LEAST, fewer steps and queries first."""
    took, most, size = _costs(asked, nets), len(asked.data), asked.size
    share = min(1.0, max(seconds / took(min(LEAST, most)), FEWEST / size.steps))
    images = bisect_right(range(1, most + 1), seconds, key=lambda n: share * took(n))
    return {
        "images": max(1, images),
        "steps": max(min(FEWEST, size.steps), int(size.steps * share)),
        "queries": max(1, int(size.queries * share)),
    }


def _costs(asked: Asked, nets: Mapping[str, Loaded]) -> Callable[[int], float]:
    """The seconds that an audit of so many images takes, by the passes that it asks for and their time.

    No attack is tried: their passes are counted on a small net, so that this is known in a few seconds.
    """
    each = longer = again = once = 0.0  # an image of all, of the sample, of those looked at, and beside
    scales = 0 if asked.held_out is None else 1 + asked.several
    for net in nets.values():
        _, parts = _attacks(asked, net)
        few, _ = match_labels(net.net, asked.data, given=asked.options["class_map"], who=net.who)
        forward, back = pass_costs(net.net.to(asked.fabric.device), few)
        passes = {part.name: cost(part) for part in parts}
        price = {name: (there + 2) * forward + out * back for name, (there, out) in passes.items()}
        main = price[_main(parts)]
        each += len(asked.epsilons) * (sum(price.values()) + scales * main)
        longer += LONGER * main
        again += sum(price.values())
        once += forward * len(asked.held_out or ())
    share = 1 / asked.fabric.world_size
    return lambda n: share * each * n + longer * min(asked.size.longer, n) + again * min(PROBE, n) + once


def _audited(
    asked: Asked, nets: Mapping[str, Loaded], folder: Path, *, kept: bool, command: str | None
) -> Audit:
    models, candidates = [], []
    for number, (name, net) in enumerate(nets.items(), start=1):
        model, candidate = _one(asked, name, net, folder, number)
        models.append(model)
        candidates.append(candidate)
    content = store.read_job(folder)
    result = Audit(
        models=models,
        pairs=pairs.all_pairs(candidates, threshold=asked.threshold),
        threshold=asked.threshold,
        epsilons=asked.epsilons,
        asked={**content["job"], "attacked": len(asked.data), "size_of": vars(asked.size)},
        made={
            "command": command,
            **{key: content[key] for key in ("versions", "commit", "device", "threads", "started")},
        },
    )
    if kept and asked.fabric.is_global_zero:
        with store.writing(folder):
            store.write_json(folder / "audit.json", result.content)
        page.write_page(result, folder)
    return result


def _one(asked: Asked, name: str, net: Loaded, folder: Path, number: int) -> tuple[Model, pairs.Candidate]:
    """One model attacked, recalibrated and attacked again, and for a while longer."""
    attacks, parts = _attacks(asked, net)
    last = [part.key for part in parts if part.eps == asked.epsilons[-1] and part.name != "noise"]
    place = folder / str(number)
    main = [part for part in parts if part.name == _main(parts)]
    bounds = {part.key: CERTIFICATES[asked.certificate](eps=part.eps) for part in main if asked.certificate}
    told = {**asked.options, "progress": _joined(asked, name, parts)}
    run = attack_all(net, asked.data, attacks, place, watched=last, certificates=bounds, **told)
    evidence = {pairs.RAW: _evidence(run, parts)}
    scales = _scales(asked, net)
    for grounds, k in scales.items():
        if grounds == pairs.SCALE or asked.several:
            again = _scaled(asked, name, net, k, main, folder / f"{number}-{grounds.replace(' ', '-')}")
            evidence[grounds] = again
    slack = _slack(asked, name, net, evidence[pairs.RAW], main[-1], folder / f"{number}-longer")
    recalibrated = evidence.get(pairs.SCALE)
    gradients = len(main) and main[0].name == "auto"
    findings = store.read_job(run).get("findings", [])
    model = Model(
        name=name,
        folder=place.name,
        evidence=evidence[pairs.RAW],
        found=answers(evidence[pairs.RAW], threshold=asked.threshold),
        recalibrated=[] if recalibrated is None else answers(recalibrated, threshold=asked.threshold),
        k=scales.get(pairs.SCALE),
        slack=slack,
        left_out=() if gradients else (LEFT_OUT,),
        findings=findings,
        affected=_affected(asked, net, evidence[pairs.RAW], parts),
    )
    return model, pairs.Candidate(name, evidence, slack)


def _joined(asked: Asked, name: str, parts: Sequence[Part]) -> Progress:
    """One task for all attacks on a model, in passes through it, so that the time left is that of all."""
    weights = {}
    for part in parts:
        forwards, backwards = cost(part)
        weights[part.key] = forwards + 2 * backwards  # a pass back takes twice as long
    passed, whole = dict.fromkeys(weights, 0), len(asked.data) * sum(weights.values())

    def tell(task: str, done: int, of: int, note: str = "") -> None:
        passed[task] = done * weights[task]
        asked.options["progress"](name, sum(passed.values()), whole, task)

    return tell


def _affected(asked: Asked, net: Loaded, evidence: Evidence, parts: Sequence[Part]) -> list[Affected]:
    images, _ = match_labels(net.net, asked.data, given=asked.options["class_map"], who=net.who)
    return attack_again(net.net, images, evidence, parts, seed=asked.seed)


def _attacks(asked: Asked, net: Loaded) -> tuple[dict[str, Attack], tuple[Part, ...]]:
    parts = suite(asked.epsilons, asked.size, gradients=gives_gradients(net.net, asked.data))
    return {part.key: part.attack for part in parts}, parts


def _main(parts: Sequence[Part]) -> str:
    """The strongest attack there is: what recalibrated models and longer runs are put to."""
    names = [part.name for part in parts]
    return "auto" if "auto" in names else "square_underconfidence"


def _scales(asked: Asked, net: Loaded) -> dict[str, float]:
    """The multipliers of the logits: of least NLL, and of one clean confidence; those that there are."""
    if asked.held_out is None:
        return {}
    held, _ = match_labels(net.net, asked.held_out, given=asked.options["class_map"], who=net.who)
    return pairs.fit_scales(net.net, held)


def _scaled(asked: Asked, name: str, net: Loaded, k: float, main: Sequence[Part], folder: Path) -> Evidence:
    """What the main attack does to k·z."""
    scaled = Recalibrated(net.net, Scale(k).to(next(net.net.parameters(), torch.empty(0)).device)).eval()
    of_scaled = replace(net, net=scaled, facts={**net.facts, "k": k})
    told = {**asked.options, "progress": _joined(asked, f"{name}, recalibrated by {k:.3g}", main)}
    chosen = {part.key: part.attack for part in main}
    run = attack_all(of_scaled, asked.data, chosen, folder, probe=0, **told)
    return _evidence(run, main)


def _slack(asked: Asked, name: str, net: Loaded, evidence: Evidence, last: Part, folder: Path) -> float:
    """What LONGER times the steps of the main attack change on a sample, at the largest budget."""
    size, n = asked.size, len(asked.data)
    places = np.unique(np.linspace(0, n - 1, min(size.longer, n)).astype(np.int64))
    more = replace(size, steps=LONGER * size.steps, queries=LONGER * size.queries)
    parts = [
        part for part in suite((last.eps,), more, gradients=last.name == "auto") if part.name == last.name
    ]
    sample = asked.data.take(torch.from_numpy(places))
    longer = replace(asked, data=sample)
    told = {**asked.options, "progress": _joined(longer, f"{name}, {LONGER} times the steps", parts)}
    run = attack_all(net, sample, {p.key: p.attack for p in parts}, folder, probe=0, **told)
    return pairs.slack(evidence, _evidence(run, parts), places, threshold=asked.threshold)


def _evidence(run: Path, parts: Sequence[Part]) -> Evidence:
    """What the records of a run folder hold of these attacks; one at a time is in memory."""
    content = store.read_job(run)
    found: dict[str, dict[float, list[Seen]]] = {what: {} for what in ("under", "noise", "over", "flipped")}
    y, clean, certified = torch.empty(0), None, {}
    for part in parts:
        _, records = records_of(run / part.key, content)
        if clean is None:
            y, clean = records.y, Seen.of(records.clean, records.y)
        found[part.what].setdefault(part.eps, []).append(Seen.of(records.attacked, records.y))
        if records.lower is not None:
            certified[part.eps] = records.lower.numpy()
    assert clean is not None
    classes = content["job"]["classes"]
    return Evidence(y=y.numpy(), classes=classes, clean=clean, certified=certified, **found)


def _named(model: Given | Sequence[Given] | Mapping[str, Given]) -> dict[str, Given]:
    """The models by name, no two alike."""
    if isinstance(model, Mapping):
        return dict(model)
    several = [model] if isinstance(model, str | nn.Module) else list(model)
    if not several:
        raise InputError("name at least one model: poise audit MODEL --data D")
    names = [Path(m).name if isinstance(m, str) else type(m).__name__ for m in several]
    if len({*names}) < len(names):
        names = [str(m) if isinstance(m, str) else name for m, name in zip(several, names, strict=True)]
    return {
        name if names.count(name) == 1 else f"{name} {number}": each
        for number, (name, each) in enumerate(zip(names, several, strict=True), start=1)
    }


def _images(data: Data, seed: int) -> ImageSet:
    """The images; batches are kept as they are, in memory."""
    if isinstance(data, str):
        return sets.load(data, seed=seed)
    return data if isinstance(data, ImageSet) else from_batches(data, "the images given")

"""An audit: one model, one data set, several attacks, into one run folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from poise import labels, models, store, training
from poise.attacks import Attack
from poise.auditing import kept
from poise.auditing.fitting import check_shape, fit_findings, match_labels
from poise.auditing.timing import Estimate, Timed, estimate
from poise.certify import Certificate
from poise.checks import InputError, check_count
from poise.data import ImageSet
from poise.devices import at_work, by_all, by_first, sharing, turn
from poise.diagnostics import Finding, diagnose
from poise.evaluation import evaluate
from poise.fast import eager
from poise.naming import lookup
from poise.progress import Progress, silent
from poise.recalibration import RECALIBRATIONS, Recalibrated, logits_of
from poise.report import read
from poise.resources import fitting, suit_threads, using
from poise.training.outcome import read_finished, read_marks

PROBE = 16  # images on which every attack is run once more, watched
EXAMPLES = 8  # images kept for pictures


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network, what to call it, the facts that tell it from every other, and what it was trained on.

    `seen` are the marks of those images (`ImageSet.marks`), where they are known.
    """

    net: nn.Module
    who: str
    facts: Mapping[str, Any]
    seen: Tensor | None = None


def audit(
    model: str | nn.Module | Loaded,
    data: ImageSet,
    attacks: Mapping[str, Attack],
    out: str | Path,
    *,
    weights: str | Path | None = None,
    code: str | None = None,
    class_map: labels.Given | None = None,
    recalibrate: str | None = None,
    held_out: ImageSet | None = None,
    seed: int = 0,
    probe: int = PROBE,
    watched: Collection[str] | None = None,
    certificates: Mapping[str, Certificate] = {},
    fabric: Fabric | None = None,
    progress: Progress = silent,
    on_estimate: Callable[[Estimate], object] | None = None,
) -> Path:
    """Attack the model and leave the records in the run folder `out`, a folder an attack.

    Records are kept every half a minute, and the same call again goes on from there; more attacks can
    join later. What was done before is read first, and refused where it is not what was written.

    Args:
        model: a training run's folder, the name of a model whose `weights` are given, or a network.
        data: the images.
        attacks: by the names that they get in tables.
        out: the run folder.
        weights: a file of weights, for a model given by name.
        code: the model's name once more, for a run whose model is code or a download; see `poise.load`.
        class_map: the model's class, by its name or number, for some of the data's; the others are
            matched by name (`poise.labels`).
        recalibrate: one of RECALIBRATIONS, fitted first on `held_out`; the attacks see the result.
        held_out: images that are not in `data`.
        seed: of the attacks' draws.
        probe: images on which attacks are run once more, watched, for `poise.diagnostics`; 0 for none.
        watched: the names of those attacks, by default all.
        certificates: by the names of attacks: bounds of the confidence in their balls, kept in their
            records and checked against what they find (`poise.certify`).
        fabric: the processes that share out the batches, see `poise.devices.sharing`; one by default. All
            must see `out`.
        progress: told how far each attack is.
        on_estimate: given the time that the attacks will take, measured first; what it raises stops
            the audit before the first of them.

    Raises:
        InputError: a model that is not there or does not fit the data, `out` holds another run or a
            damaged one or another command is at work there, devices that are missing, or a full disk.
    """
    folder, fabric = Path(out), fabric or sharing()
    _check_names(attacks)
    with at_work(fabric), ExitStack() as stack:
        if not isinstance(model, Loaded):
            model = load_model(model, data, weights=weights, code=code, class_map=class_map)
        net, facts = model.net, dict(model.facts)
        data, matched = match_labels(net, data, given=class_map, who=model.who)
        if held_out is not None:
            held_out, _ = match_labels(net, held_out, given=class_map, who=model.who)
        net = net.to(fabric.device)
        data = fitted(net, data).on(fabric.device)
        if recalibrate is not None:
            net = _recalibrate(net, recalibrate, held_out)
            assert held_out is not None
            facts |= {"recalibration": recalibrate, "held_out": held_out.fingerprint()}
        job = {
            "kind": "audit",
            **facts,
            "data": data.name,
            "images": len(data),
            "fingerprint": data.fingerprint(),
            "classes": list(data.classes),
            **matched,
            "seed": seed,
        }
        fits = partial(fit_findings, class_map=matched.get("class_map"), seen=model.seen, held_out=held_out)
        known = by_first(fabric, lambda: store.threads_of(folder))
        stack.enter_context(using(lambda: known or threads_for(net, data)))
        told = progress if fabric.is_global_zero else silent
        run = Run(net, data, attacks, certificates, folder, fabric, seed, told)
        by_first(fabric, lambda: stack.enter_context(store.alone(_open(run, job))))
        left = by_first(fabric, lambda: _left(run))
        if left and on_estimate is not None:
            by_first(fabric, lambda: on_estimate(_estimate(run, left, probe)))
        _attack_all(run, left)
        looked_at = {name: attack for name, attack in attacks.items() if watched is None or name in watched}
        if probe:
            by_first(fabric, lambda: _diagnose(run, looked_at, probe, fits, again=bool(left)))
    return folder


@dataclass(frozen=True, eq=False)
class Run:
    """What is attacked, by what, and where the records go."""

    net: nn.Module
    data: ImageSet
    attacks: Mapping[str, Attack]
    certificates: Mapping[str, Certificate]
    folder: Path
    fabric: Fabric
    seed: int
    progress: Progress


def _open(run: Run, job: Mapping[str, Any]) -> Path:
    """The run's folder, and in it one for each attack."""
    folder, device = store.open_run(run.folder, job, device=run.fabric.device), run.fabric.device
    with store.writing(folder):
        if "source" not in store.read_job(folder):
            store.note(folder, source=run.data.told)
        if isinstance(run.net, Recalibrated):
            store.write_tensors(folder / "recalibration.safetensors", run.net.last.state_dict())
    for name, attack in run.attacks.items():
        part = {"kind": "attack", "attack": repr(attack), "of": store.key_of(job)}
        if name in run.certificates:
            part["certificate"] = repr(run.certificates[name])
        store.open_run(folder / name, part, device=device)
    return folder


def _left(run: Run) -> dict[str, list[Tensor]]:
    """The batches that there are no records of, of each attack that has not ended."""
    found = {
        name: kept.left(run.folder / name, len(run.data), run.data.batch_size)
        for name in run.attacks
        if not (run.folder / name / "records.parquet").exists()
    }
    if len(found) < len(run.attacks):
        read(run.folder)
    store.check_room(run.folder, len(found) * _size(run.data))
    return found


def _estimate(run: Run, left: Mapping[str, Sequence[Tensor]], probe: int) -> Estimate:
    attacks = {name: run.attacks[name] for name in left}
    return estimate(run.net, run.data, attacks, devices=run.fabric.world_size, watched=probe, seed=run.seed)


def _attack_all(run: Run, left: Mapping[str, Sequence[Tensor]]) -> None:
    """Attack the batches that are left, each process those that fall to it; the first joins the records."""
    fabric, began = run.fabric, dict[str, Any]()
    numbers = count()

    def leave() -> None:
        for name in [*began]:
            _leave(run, name, began.pop(name))

    def work() -> None:
        for name in run.attacks:
            if name not in left:
                run.progress(name, len(run.data), len(run.data), "done before")
                continue
            began[name] = store.circumstances(fabric.device)  # not those of a call that was stopped
            own = [b for b in left[name] if turn(next(numbers), fabric.world_size) == fabric.global_rank]
            _attack(run, name, own, begun=sum(map(len, left[name])) < len(run.data))
            if fabric.world_size == 1:
                leave()

    by_all(fabric, work)
    by_first(fabric, leave)


def fitted(net: nn.Module, data: ImageSet) -> ImageSet:
    """The data in batches that memory holds: peak memory must not depend on how large the images are."""
    x, _ = next(data.batched(2).batches(torch.arange(min(2, len(data)))))
    weight = next(net.parameters(), torch.empty(0))
    return data.batched(fitting(net, x.to(weight.device, weight.dtype), most=data.batch_size))


def threads_for(net: nn.Module, data: ImageSet) -> int:
    """Threads that suit a batch of the data."""
    x, _ = next(data.batches(torch.arange(min(2, len(data)))))
    weight = next(net.parameters(), torch.empty(0))
    return suit_threads(net, x.to(weight.device, weight.dtype), images=min(data.batch_size, len(data)))


def set_aside(data: ImageSet, images: int | None = None, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """So many images to fit something on, by default a third and at most 500, and all the others.

    Raises:
        InputError: no image is left on one of the two sides.
    """
    images = min(500, len(data) // 3) if images is None else images
    check_count("held_out", images, 1, len(data) - 1)
    return data.divide(images, seed=seed)


def _attack(run: Run, name: str, batches: Sequence[Tensor], *, begun: bool) -> None:
    """Keep the records of these batches under one attack; `begun` where there are some of others."""
    part, fabric, timed = run.folder / name, run.fabric, Timed(run.attacks[name])
    if fabric.is_global_zero and begun and (differ := store.join(part, device=fabric.device)):
        then, now = (", ".join(words) for words in zip(*differ, strict=True))
        warnings.warn(f"{str(part)!r} was on {then} and goes on with {now}", stacklevel=5)
    taken = kept.Kept(part, every=kept.EVERY if fabric.world_size == 1 else 0.0)
    run.progress(name, taken.images, len(run.data))
    try:
        for batch in batches:
            start, before = int(batch[0]), sum(timed.times)
            records = evaluate(
                run.net,
                run.data.batches(batch),
                timed,
                seed=run.seed,
                examples=max(0, EXAMPLES - start),
                certificate=run.certificates.get(name),
                start=start,
            )
            notes = tuple(timed.notes)
            taken.add(start, kept.Part(records, sum(timed.times) - before, notes))
            run.progress(name, taken.images, len(run.data))
    finally:
        taken.write()  # an interrupt loses nothing


def _leave(run: Run, name: str, began: Mapping[str, Any]) -> None:
    """Join an attack's records: they are whole."""
    part = run.folder / name
    records, seconds, notes = kept.whole(part)
    files = {
        "images.safetensors": store.tensor_bytes({"x": records.x, "x_adv": records.x_adv}),
        "records.parquet": store.frame_bytes(records.frame()),
    }
    facts = {"seconds": seconds, "notes": list(notes), "devices": run.fabric.world_size}
    store.leave(part, files, **began, **facts)
    kept.clear(part)


def _size(data: ImageSet) -> int:
    """Bytes that the records of one attack take at most, uncompressed and in float64."""
    numbers = 11 + 2 * len(data.classes)  # an image: labels, confidences, distances, bounds, probabilities
    return 8 * (len(data) * numbers + 2 * EXAMPLES * prod(data.shape))


def _check_names(attacks: Mapping[str, Attack]) -> None:
    """Refuse attacks that cannot have a folder of their name in the run's."""
    for name in attacks:
        if not isinstance(name, str) or not name or name.startswith(".") or {*name} & {*"/\\\0"}:
            raise InputError(f"an attack's name is its folder's, {name!r} cannot be: leave dots and / away")


def _diagnose(
    run: Run,
    attacks: Mapping[str, Attack],
    probe: int,
    fits: Callable[[nn.Module, ImageSet], Sequence[Finding]],
    *,
    again: bool,
) -> None:
    """Note in job.json what makes the audit's numbers doubtful, looked for on a few of its images.

    Where that is known of all these attacks nothing is done, unless it is to be looked for again.
    """
    before = store.read_job(run.folder)
    if not again and {*attacks} <= {*before.get("diagnosed", [])}:
        return
    x, y = next(run.data.batched(probe).batches(torch.arange(min(probe, len(run.data)))))
    records = {part.name: part.records for part in read(run.folder).attacked if part.name in attacks}
    others = [f for f in before.get("findings", []) if f["attack"] and f["attack"] not in attacks]
    diagnosed = sorted({*before.get("diagnosed", []), *attacks})
    plain = {name: eager(attack) for name, attack in attacks.items()}
    found = [
        *fits(run.net, run.data),
        *diagnose(run.net, plain, x.to(run.fabric.device), y, records=records),
    ]
    findings = others + [asdict(finding) for finding in found]
    store.note(run.folder, findings=findings, diagnosed=diagnosed)


def _recalibrate(net: nn.Module, method: str, held_out: ImageSet | None) -> Recalibrated:
    fit = lookup(RECALIBRATIONS, method, "recalibration")
    if held_out is None or len(held_out) == 0:
        raise InputError(f"recalibration by {method} needs held-out images")
    model = Recalibrated(net, fit(*logits_of(net, held_out))).eval()
    return model.to(next(net.parameters(), torch.empty(0)).device)


def load_model(
    model: str | nn.Module,
    data: ImageSet,
    *,
    weights: str | Path | None = None,
    code: str | None = None,
    class_map: labels.Given | None = None,
) -> Loaded:
    """The network that `audit` attacks; arguments and refusals are its."""
    if isinstance(model, nn.Module):
        facts = {"model": type(model).__name__, "defense": None, "weights": models.fingerprint(model)}
        return Loaded(model, "the model", facts)
    net, facts = _load_model(model, data, weights, code, class_map)
    seen = read_marks(Path(weights or f"{model}/model.safetensors").expanduser())
    return Loaded(net, model, facts, seen)


def _load_model(
    model: str,
    data: ImageSet,
    weights: str | Path | None,
    code: str | None,
    class_map: labels.Given | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and the facts that tell it from every other."""
    if Path(model).expanduser().is_dir():
        return _load_run(Path(model).expanduser(), data, weights, code)
    if code is not None:
        raise InputError(f"--code goes with a run folder, and there is none at {model!r}")
    if weights is None and not models.comes_with_weights(model):
        models.load(model, classes=len(data.classes), shape=data.shape)  # its name may be unknown
        raise InputError(
            f"{model} comes without weights: train it (`poise train --model {model} ... --out RUN`) and "
            "name the run folder as --model, or give --weights FILE"
        )
    known = weights is None or weights == "pretrained" or class_map or models.names_in(weights)
    own = known and models.own_classes(model, weights)  # which may be more than the data's
    classes = None if own else len(data.classes)
    net = models.load(model, classes=classes, shape=data.shape, weights=weights)
    return net, {"model": model, "defense": None, "weights": models.fingerprint(net)} | _code(model)


def _load_run(
    run: Path, data: ImageSet, weights: str | Path | None, code: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    if weights is not None:
        raise InputError("--weights goes with a model's name, and --model is a run folder")
    content, file = read_finished(run)
    job = content["job"]
    check_shape(run, job, data)
    net, name = training.load(run, code=code), job["model"]
    facts = {"model": name, "defense": job["defense"], "weights": store.file_hash(file)}
    if "/" in name or models.is_code(name):  # what is beside the weights may have changed
        facts["net"] = models.fingerprint(net)
    return net, facts | _code(code or name)


def _code(name: str) -> dict[str, str]:
    """What tells the code behind a name, if there is some, from every other."""
    return {"code": models.code_digest(name)} if models.is_code(name) else {}

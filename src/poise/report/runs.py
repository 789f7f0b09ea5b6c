"""Audits read back from their folders, and only if their records are whole and belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from poise import store
from poise.checks import TOLERANCE, InputError, looks_like_probabilities
from poise.job_file import refuse_damaged
from poise.records import Records
from poise.report.escaping import WIDTH, plain
from poise.shapes import per_image

WORST = "each image's worst case"


@dataclass(frozen=True, eq=False)
class Attacked:
    """One attack's records, with what it was and how long it took."""

    name: str
    attack: str  # its full configuration
    seconds: float
    records: Records


@dataclass(frozen=True, eq=False)
class Audit:
    """One audit: a model on a data set under several attacks."""

    title: str
    content: Mapping[str, Any]  # of job.json
    attacked: tuple[Attacked, ...]

    @property
    def worst(self) -> Attacked:
        """Each image's worst case: of the points that kept its label, that of the least confidence.

        The image itself takes part, so that no confidence is above the clean one.
        """
        first = self.attacked[0].records
        still = {"linf": 0.0, "l2": 0.0, "wasserstein": 0.0, "ssim": 1.0}
        still_there = {name: torch.full_like(getattr(first, name), v) for name, v in still.items()}
        found = replace(first, attacked=first.clean, x_adv=first.x, **still_there)
        for part in self.attacked:
            found = _lower(found, part.records)
        seconds = sum(part.seconds for part in self.attacked)
        return Attacked(WORST, "; ".join(part.attack for part in self.attacked), seconds, found)


def _lower(found: Records, new: Records) -> Records:
    """Image by image the new point, where it kept the label at less confidence than the one found."""
    better = new.kept & (new.attacked.amax(dim=1) < found.attacked.amax(dim=1))
    shown = per_image(better[: len(new.x_adv)])
    chosen: dict[str, torch.Tensor] = {"x_adv": torch.where(shown, new.x_adv, found.x_adv)}
    for field in fields(Records):
        if field.name not in ("y", "clean", "x", "x_adv", "lower", "upper"):  # bounds are the image's
            old, other = getattr(found, field.name), getattr(new, field.name)
            chosen[field.name] = torch.where(better[:, None] if old.ndim == 2 else better, other, old)
    return replace(found, **chosen)


def read(folder: str | Path) -> Audit:
    """The audit in a run folder.

    Raises:
        InputError: no audit, or one without a finished attack, or damaged.
    """
    folder = Path(folder)
    content = store.read_job(folder)
    job = content["job"]
    if job.get("kind") == "train":
        raise InputError(
            f"{str(folder)!r} is a training run: attack it first, "
            f"`poise evaluate --model {folder} --data {job.get('data')} --out RUN`, and report that"
        )
    parts = [part.parent for part in folder.glob("*/records.parquet")]
    if job.get("kind") != "audit" or not parts:
        raise InputError(f"{str(folder)!r} holds no finished attack: run `poise evaluate` first")
    found = {part.name: records_of(part, content) for part in parts}
    found = dict(sorted(found.items(), key=lambda pair: pair[1][0]["started"]))
    apart = versions_apart({name: told for name, (told, _) in found.items()})
    content = {**content, "findings": apart + content.get("findings", [])}
    parts_of_name = (job["model"], job["defense"], job.get("recalibration"))
    title = " ".join(name for name in parts_of_name if name)
    return Audit(
        plain(f"{title} on {job['data']}", width=WIDTH),
        content,
        tuple(
            Attacked(name, told["job"]["attack"], told["seconds"], r) for name, (told, r) in found.items()
        ),
    )


def read_all(folders: Iterable[str | Path]) -> list[Audit]:
    """The audits in several run folders, told apart; a folder named twice is read once."""
    distinct = {Path(folder).resolve(): folder for folder in folders}
    return tell_apart([read(folder) for folder in distinct.values()])


def tell_apart(audits: Sequence[Audit]) -> list[Audit]:
    """The audits, each of several with one title named by what tells it from the others too.

    That is its budget and other options of its attacks, seed, weights, images or data; a number
    where nothing does.
    """
    shown = [replace(audit, title=plain(audit.title)) for audit in audits]
    titles = [audit.title for audit in shown]
    for title in {title for title in titles if titles.count(title) > 1}:
        alike = [i for i, other in enumerate(titles) if other == title]
        told = _differences([audits[i] for i in alike])
        for number, (i, words) in enumerate(zip(alike, told, strict=True), start=1):
            words = words if told.count(words) == 1 else [*words, f"run {number}"]
            shown[i] = replace(audits[i], title=f"{title}, {', '.join(words)}")
    return shown if len({audit.title for audit in shown}) == len(shown) else tell_apart(shown)


def _differences(audits: Sequence[Audit]) -> list[list[str]]:
    """For each of the audits, the facts in which they are not all alike, in words."""
    common = set.intersection(*({part.name for part in audit.attacked} for audit in audits))
    facts = [_facts(audit, common) for audit in audits]
    names = dict.fromkeys(name for known in facts for name in known)
    differ = [name for name in names if len({known.get(name) for known in facts}) > 1]
    return [[f"{name} {known.get(name, 'none')}" for name in differ] for known in facts]


def _facts(audit: Audit, attacks: set[str]) -> dict[str, str]:
    """What may tell an audit from another of the same title; of the attacks' options those of these."""
    job, options = audit.content["job"], dict[str, set[str]]()
    for part in audit.attacked:
        if part.name in attacks:
            for name, value in re.findall(r"(\w+)=([^=,()]+)[,)]", part.attack):
                options.setdefault(name, set()).add(_number(value))
    named = {"weights": "weights", "seed": "seed", "n": "images", "data": "fingerprint"}
    found = {name: " and ".join(sorted(values)) for name, values in sorted(options.items())}
    found |= {name: str(job[key])[:8] for name, key in named.items() if job.get(key) is not None}
    return found | {"held out": str(job["held_out"])[:8]} if job.get("held_out") else found


def _number(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return plain(text, width=WIDTH)


DISTANCES = ("linf", "l2", "wasserstein", "ssim")


def records_of(part: Path, audit: Mapping[str, Any]) -> tuple[dict[str, Any], Records]:
    """What job.json says of a finished attack of that audit, and its records.

    Raises:
        InputError: a file that is missing, does not hold what the attack wrote, or belongs to another
            audit; or numbers that no attack can have left.
    """
    content = store.read_job(part)
    if content["job"].get("kind") != "attack" or content["job"]["of"] != audit["key"]:
        raise InputError(
            f"{str(part)!r} belongs to another run than {str(part.parent)!r}: take it out of there"
        )
    if "seconds" not in content:
        refuse_damaged(part / "job.json", "seconds is missing")
    images, _ = store.read_tensors(store.whole(part, "images.safetensors", content))
    file = store.whole(part, "records.parquet", content)
    records = _records(file, images, audit["job"]["images"])
    for told, holds in _what_must_hold(records):
        if not holds:
            refuse_damaged(file, told)
    return content, records


def versions_apart(contents: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A finding where the attacks of one audit, by name, were not run by the same versions."""
    packages = {
        name: ", ".join(f"{p} {content['versions'].get(p)}" for p in store.DECIDE)
        for name, content in contents.items()
    }
    if len({*packages.values()}) < 2:
        return []
    seen = "; ".join(f"{name} was run by {versions}" for name, versions in packages.items())
    advice = "Numbers of different versions may differ: run all attacks anew, into another folder."
    return [{"kind": "versions", "attack": "", "share": 1.0, "seen": f"{seen}.", "advice": advice}]


def _records(file: Path, images: Mapping[str, Tensor], rows: int) -> Records:
    try:
        there = pl.scan_parquet(file).select(pl.len()).collect().item()
        if there != rows:  # known before memory is asked for
            refuse_damaged(file, f"it has {there} rows, and the audit {rows} images")
        return Records.from_frame(pl.read_parquet(file), images["x"], images["x_adv"])
    except KeyError as error:
        refuse_damaged(file.with_name("images.safetensors"), f"it has no {error.args[0]}", error)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError) as error:
        refuse_damaged(file, str(error).split("\n")[0], error)


def _what_must_hold(r: Records) -> Sequence[tuple[str, bool]]:
    """Facts of all records, each with what is wrong where it does not hold; later ones need the earlier."""
    numbers = (r.clean, r.attacked, r.linf, r.l2, r.wasserstein, r.ssim, r.x, r.x_adv)
    shaped = r.clean.ndim == 2 and r.clean.shape == r.attacked.shape and r.clean.shape[1] > 1
    shaped &= r.x.ndim == 4 and r.x.shape == r.x_adv.shape and len(r.x) <= len(r)
    shaped &= all(getattr(r, name).ndim == 1 for name in ("y", *DISTANCES))
    typed = r.y.dtype == torch.int64 and all(v.is_floating_point() for v in numbers)
    facts = [("its columns are of other shapes or types than records have", shaped and typed)]
    if not (shaped and typed and len(r)):
        return facts
    finite = all(bool(torch.isfinite(v).all()) for v in numbers)
    distances = all(bool((v >= 0).all()) for v in (r.linf, r.l2, r.wasserstein))
    pixels = all(bool(((v >= -TOLERANCE) & (v <= 1 + TOLERANCE)).all()) for v in (r.x, r.x_adv))
    rows = all(looks_like_probabilities(v, tolerance=1e-3) for v in (r.clean, r.attacked))
    return [
        *facts,
        ("a number is NaN or infinite", finite),
        ("a label is none of the model's classes", bool(((r.y >= 0) & (r.y < r.clean.shape[1])).all())),
        ("probabilities do not sum to 1", rows),
        ("a distance is negative", distances),
        ("an SSIM is outside [-1, 1]", bool((r.ssim.abs() <= 1 + 1e-4).all())),
        ("a pixel is outside [0, 1]", pixels),
    ]

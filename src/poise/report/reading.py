"""The records of an attack, read back only if they are whole and belong to their audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from poise import store
from poise.checks import TOLERANCE, InputError, looks_like_probabilities
from poise.job_file import damaged
from poise.records import Records

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
        damaged(part / "job.json", "seconds is missing")
    images, _ = store.read_tensors(store.whole(part, "images.safetensors", content))
    file = store.whole(part, "records.parquet", content)
    records = _records(file, images, audit["job"]["images"])
    for told, holds in _what_must_hold(records):
        if not holds:
            damaged(file, told)
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
            damaged(file, f"it has {there} rows, and the audit {rows} images")
        return Records.from_frame(pl.read_parquet(file), images["x"], images["x_adv"])
    except KeyError as error:
        damaged(file.with_name("images.safetensors"), f"it has no {error.args[0]}", error)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError) as error:
        damaged(file, str(error).split("\n")[0], error)


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

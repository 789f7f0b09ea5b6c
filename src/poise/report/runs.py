"""Audits read back from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise import store
from poise.checks import InputError
from poise.records import Records
from poise.report.reading import records_of, versions_apart


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
    def strongest(self) -> Attacked:
        """The attack that leaves the lowest mean confidence among those that keep every label.

        Where none does, among those that keep the most.
        """
        return min(
            self.attacked,
            key=lambda a: (
                -float(a.records.kept.double().mean()),
                float(a.records.attacked.max(dim=1).values.double().mean()),
            ),
        )


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
        f"{title} on {job['data']}",
        content,
        tuple(
            Attacked(name, told["job"]["attack"], told["seconds"], r) for name, (told, r) in found.items()
        ),
    )

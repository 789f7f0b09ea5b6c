"""The nets that the paper's tables need: what one is, the folder that it is known by, its training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from poise import data, defenses, models, store, training
from poise.data import ImageSet
from poise.data.digests import digest_of
from poise.defenses import Defense, Vanilla
from poise.naming import lookup, take_known
from poise.paper.readings import OURS, Reading
from poise.paper.suites import Setting
from poise.preparation import Preparation
from poise.progress import Progress
from poise.train_job import TrainJob


class Place(NamedTuple):
    """Where runs go, where data lie, and how many test images are set aside."""

    out: Path
    root: Path
    held: int = 1000


@dataclass(frozen=True, kw_only=True)
class PaperNet:
    """One net of the paper's tables; several tables that need the same one find it in the same folder.

    Args:
        setting: architecture, data and budgets.
        defense: as the paper's tables name it.
        seed: of the training, and of the draws of attacks that are audited.
        reading: of the attacks, and of CAAT.
    """

    setting: Setting
    defense: str
    seed: int
    reading: Reading = OURS

    @property
    def job(self) -> TrainJob | None:
        """How it is trained (section 4.1); None where its weights are taken as they are."""
        s = self.setting
        if s.as_is:
            return None
        warm = not isinstance(self.value, Vanilla) and "unprojected" not in self.defense
        return replace(
            s.job,
            defense=_split(self.defense)[0],
            seed=self.seed,
            eps_warmup=s.job.eps_warmup if warm else 0.0,
        )

    @property
    def value(self) -> Defense:
        """The defense itself, with the setting's budget and the paper's steps."""
        s = self.setting
        name, steps = _split(self.defense)
        name = self.reading.caat if name == "caat" else name
        factory = lookup({**defenses.DEFENSES, **defenses.READINGS}, name, "defense")
        return factory(**take_known(factory, eps=s.train_eps, step=s.step, steps=steps))

    @cached_property
    def name(self) -> str:
        """Its folder's: what it is, and a key of everything it depends on."""
        s = self.setting
        weights, source, model = map(_content, (s.job.weights, s.job.data, s.job.model))
        train = f"{weights} on {source}"
        if self.job:
            train = repr(replace(self.job, weights=weights, data=source, model=model))
            for later in (
                ", patience=0",
                ", optimizer='sgd'",
            ):  # came later: count if used
                train = train.replace(later, "")
        facts = {"job": train, "defense": repr(self.value), "train": s.train, "model": model}
        return folder_name(s.architecture, s.dataset, _split(self.defense)[0], self.seed, facts=facts)

    def folder(self, place: Place) -> Path:
        """Where it lies once it is trained."""
        return place.out / "trained" / self.name

    def ready(self, place: Place) -> bool:
        """Whether there is no training to do."""
        return self.job is None or (self.folder(place) / "model.safetensors").exists()

    def train(self, place: Place, progress: Progress) -> None:
        """Train it, if that is to do."""
        if self.job is None or self.ready(place):
            return
        source = self.images("train", place)
        self.folder(place).parent.mkdir(parents=True, exist_ok=True)
        training.train(self.job, source, self.value, self.folder(place), progress=progress)

    def load(self, place: Place) -> nn.Module:
        """The net, trained before or taken as it is."""
        s = self.setting
        if self.job is not None:
            return training.load(self.folder(place), code=s.job.model)
        test = self.images("test", place)
        return models.load(s.job.model, classes=len(test.classes), shape=test.shape, weights=s.job.weights)

    def images(self, split: Literal["train", "test"], place: Place) -> ImageSet:
        """The setting's images of that split; those of training are drawn by the seed."""
        s = self.setting
        return data.load(
            s.job.data,
            split=split,
            images=s.train if split == "train" else s.test,
            seed=self.seed if split == "train" else 0,
            batch_size=s.batch_size,
            root=place.root,
            preparation=Preparation(
                size=s.size,
                channels="rgb" if s.size else None,
                allow_empty=s.job.data == "imagenet",  # a sample may lack classes
            ),
        )


def folder_name(*words: object, facts: Mapping[str, object]) -> str:
    """The words, fit for a folder's name, and a key of the facts."""
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")
    return f"{slug}-{store.key_of(facts)[:8]}"


def _content(name: str | None) -> str:
    """What tells a model, weights or data from others: where a path is named, the bytes that lie there.

    The path of `FILE`, `npz:FILE#7`, `folder:PATH`, `onnx/FILE` or `FILE.py:FUNCTION`.
    """
    name = name or "None"
    kind, _, rest = name.partition("/")
    for text in (name, name.partition(":")[2], name.rpartition(":")[0], rest * (kind in ("onnx", "hf"))):
        named = text.partition("#")[0]
        path = Path(named)
        if named and path.is_file():
            return name.replace(named, digest_of(path).hex()[:16], 1)
        if named and path.is_dir() and (named != name or path.name != name):
            files = {str(f.relative_to(path)): digest_of(f).hex() for f in path.rglob("*") if f.is_file()}
            return name.replace(named, store.key_of(files), 1)
    return name


def _split(name: str) -> tuple[str, int | None]:
    """What `poise` calls the paper's defense, and its inner steps where the name has them.

    >>> _split("UAT-Smooth-7"), _split("RobustAugMix")
    (('uat-smooth', 7), ('robust-augmix', None))
    """
    if found := re.fullmatch(r"(AT|UAT-Smooth)-(\d+)", name):
        return found[1].lower(), int(found[2])
    known: Mapping[str, str] = {
        "RobustAugMix": "robust-augmix",
        "UAT-Smooth (unprojected)": "uat-smooth-unprojected",
    }
    return known.get(name, name.lower()), None

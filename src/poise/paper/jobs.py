"""Jobs: the nets that the paper's tables need, and how each is attacked. A recipe is a list of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from poise import defenses, store
from poise.attacks import Attack
from poise.data.digests import digest_of
from poise.defenses import Defense, Vanilla
from poise.naming import lookup, taken
from poise.paper.readings import Reading, attacks_of, unheld
from poise.paper.scale import Scale, Setting
from poise.training import TrainJob

Look = Literal["attacked", "unheld", "referee"]  # audited; Table 2's other reading; compared honestly

DEFENDED = ("Vanilla", "AT", "TRADES", "RobustAugMix", "CAAT", "UAT-Gap", "UAT-Smooth")
REFEREES = ("AT-5", "UAT-Smooth (unprojected)")  # what the paper's defenses should be held against
COUNTS = (1, 3, 5, 7, 10)  # Table S3's inner steps


@dataclass(frozen=True, kw_only=True)
class Job:
    """One net, and one look at it.

    Jobs of different tables that need the same net find it in the same folder.

    Args:
        setting: architecture, data and budgets.
        defense: as the paper's tables name it.
        seed: of the training, and of the draws of attacks that are audited.
        look: "attacked" by the four attacks; "unheld" for Table 2's other reading; "referee" for the
            numbers that scaling the logits cannot improve.
        reading: of the attacks, and of CAAT.
    """

    setting: Setting
    defense: str
    seed: int
    look: Look = "attacked"
    reading: Reading = "ours"

    @property
    def train(self) -> TrainJob | None:
        """How the net is trained (section 4.1); None where its weights are taken as they are."""
        s = self.setting
        if s.epochs == 0:
            return None
        return TrainJob(
            data=s.data,
            model=s.model,
            defense=_split(self.defense)[0],
            seed=self.seed,
            epochs=s.epochs,
            lr=s.lr,
            augment=s.augment,
            freeze=s.freeze,
            precision=s.precision,
            channels_last=s.channels_last,
            weights=s.weights,
            eps_warmup=0.0 if isinstance(self.value, Vanilla) or self.unprojected else s.eps_warmup,
        )

    @property
    def unprojected(self) -> bool:
        """Whether the training attack is held to nothing but [0, 1]."""
        return "unprojected" in self.defense

    @property
    def value(self) -> Defense:
        """The defense itself, with the setting's budget and the paper's steps."""
        s = self.setting
        name, steps = _split(self.defense)
        if name == "caat" and self.reading != "ours":
            name = {"paper": "caat-rescaled", "cited": "caat-cited"}[self.reading]
        factory = lookup({**defenses.DEFENSES, **defenses.READINGS}, name, "defense")
        return factory(**taken(factory, eps=s.train_eps, step=s.step, steps=steps))

    @property
    def attacks(self) -> dict[str, Attack]:
        """What the net is attacked by, by the paper's names."""
        if self.look == "unheld":
            return dict(unheld(self.setting))
        return attacks_of(self.setting, "ours" if self.look == "referee" else self.reading)

    @cached_property
    def trained(self) -> str:
        """The name of the net's folder: what it is, and a key of everything it depends on."""
        s = self.setting
        weights, source, model = map(_content, (s.weights, s.data, s.model))
        train = f"{weights} on {source}"
        if self.train:
            train = repr(replace(self.train, weights=weights, data=source, model=model))
        facts = {"job": train, "defense": repr(self.value), "train": s.train, "model": model}
        return f"{_slug(s.architecture, s.dataset, _split(self.defense)[0], self.seed)}-{_key(facts)}"

    @property
    def looked(self) -> str:
        """The name of the folder with what the look found."""
        s = self.setting
        facts = {"net": self.trained, "test": s.test, "attacks": repr(self.attacks), "look": self.look}
        return f"{_slug(s.architecture, s.dataset, self.defense, self.seed, self.look)}-{_key(facts)}"


def table1(scale: Scale, reading: Reading) -> list[Job]:
    """Confidence before and after three attacks, by architecture and data set (Tables 1 and S1)."""
    return [
        Job(setting=setting, defense="Vanilla", seed=seed, reading=reading)
        for setting in scale.transfer
        for seed in range(scale.seeds if setting.epochs else 1)
    ]


def table2(scale: Scale, reading: Reading) -> list[Job]:
    """ΔW and SSIM of four attacks on MNIST (Table 2), held to S and not."""
    looks: tuple[Look, ...] = ("attacked", "unheld")
    return [
        Job(setting=scale.magnitude, defense="Vanilla", seed=seed, look=look, reading=reading)
        for seed in range(scale.seeds)
        for look in looks
    ]


def table3(scale: Scale, reading: Reading) -> list[Job]:
    """Seven defenses under every attack (Tables 3, 4 and S2), and two to hold them against."""
    return [
        Job(setting=setting, defense=name, seed=seed, reading=reading)
        for setting in scale.defended
        for seed in range(scale.seeds)
        for name in DEFENDED + REFEREES
    ]


def table_s3(scale: Scale, reading: Reading) -> list[Job]:
    """UAT-Smooth trained with 1 to 10 inner steps (Table S3)."""
    return [
        Job(setting=scale.counted, defense=f"UAT-Smooth-{steps}", seed=seed, reading=reading)
        for seed in range(scale.seeds)
        for steps in COUNTS
    ]


def figure2(scale: Scale, reading: Reading) -> list[Job]:
    """Confidence of right and wrong answers under three defenses (Figure 2): nets of Table 3."""
    shown = ("Vanilla", "CAAT", "UAT-Smooth")
    return [
        job
        for job in table3(scale, reading)
        if job.setting == scale.defended[-1] and job.defense in shown and job.seed == 0
    ]


def figure_s1(scale: Scale, reading: Reading) -> list[Job]:
    """One image's probabilities over the steps, and confidence by class (Figures S1 and S2)."""
    chest = [s for s in scale.transfer if s.published == ("EfficientNet-B0", "Chest X-ray")]
    return [Job(setting=setting, defense="Vanilla", seed=0, reading=reading) for setting in chest]


def referee(scale: Scale, reading: Reading) -> list[Job]:
    """The nets of Tables 3 and S3 again, in numbers that the logits' scale cannot improve unseen."""
    nets = (*table3(scale, reading), *table_s3(scale, reading))
    return distinct([replace(job, look="referee") for job in nets])


def share(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """Every so many-th net's jobs, for one of several processes; no net is in two shares."""
    nets = list(dict.fromkeys(job.trained for job in jobs))
    mine = set(nets[part::parts])
    return [job for job in jobs if job.trained in mine]


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """The jobs without repetitions, in order."""
    return list({job.looked: job for job in jobs}.values())


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


def _slug(*words: object) -> str:
    """The words, fit for a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")


def _key(facts: Mapping[str, object]) -> str:
    return store.key_of(facts)[:8]


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

"""At what size the paper's experiments are run: the full one, one GPU's, two cores', and a test's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from poise.checks import InputError, check_count
from poise.naming import lookup
from poise.train_job import TrainJob

S_TRAIN, S_TEST, STEP = 8 / 255, 0.03, 5 / 255  # sections 4.1 and 4.2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One architecture on one data set, trained and attacked as the paper says; defaults are the paper's.

    Args:
        architecture, dataset: as tables name them.
        beside: the paper's (architecture, dataset) whose numbers stand beside; its own by default.
        job: the model, the data and how it is trained; each net puts its own defense and seed there.
        as_is: take the job's weights as they are, untrained.
        train, test: so many images of each split, the same share of every class; all by default.
        train_eps, eps: S in training and in evaluation.
        step: the first step's size, in training and in evaluation.
        steps: gradient steps in evaluation.
        size: height and width that images are brought to, in colours; as the data set has it by default.
        fast: attack a prepared copy of the net (`poise.fast`); labels are checked on the net itself.
        batch_size: images a batch in evaluation.
    """

    architecture: str
    dataset: str
    beside: tuple[str, str] | None = None
    job: TrainJob
    as_is: bool = False
    train: int | None = None
    test: int | None = None
    train_eps: float = S_TRAIN
    eps: float = S_TEST
    step: float = STEP
    steps: int = 20
    size: int | None = None
    fast: bool = False
    batch_size: int = 128

    @property
    def published(self) -> tuple[str, str]:
        """The paper's (architecture, dataset) that this stands for."""
        return self.beside or (self.architecture, self.dataset)

    @property
    def faithful(self) -> bool:
        """Whether it is the paper's own architecture, data, budgets and length of training."""
        own = FULL_SETTINGS.get((self.architecture, self.dataset))
        return own is not None and replace(self, fast=own.fast, batch_size=own.batch_size) == own


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Everything that the experiments leave open: which settings each table has, and how many seeds.

    Args:
        name: as `poise reproduce --scale` has it.
        seeds: nets trained a setting.
        transfer: of Tables 1 and S1, Figures S1 and S2.
        magnitude: of Table 2 and Figure 1.
        defended: of Tables 3, 4 and S2, and Figure 2.
        counted: of Table S3.
        held: test images set aside to fit the scales of the logits on (`paper.referee`).
    """

    name: str
    seeds: int = 3
    transfer: tuple[Setting, ...]
    magnitude: Setting
    defended: tuple[Setting, ...]
    counted: Setting
    held: int = 1000

    def settings(self) -> Iterator[Setting]:
        """All of them."""
        yield from (*self.transfer, self.magnitude, *self.defended, self.counted)

    def told(
        self,
        *,
        seeds: int | None = None,
        model: Mapping[str, str] | None = None,
        weights: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        used: Iterable[Setting] | None = None,
    ) -> Suite:
        """The same with another number of seeds, models and weights by architecture, data by data set.

        What stands in for the paper's own goes by its own name, with the paper's numbers beside it.

        Args:
            seeds: nets trained a setting.
            model: another model, by architecture.
            weights: other weights, by architecture.
            data: other data, by data set.
            used: the settings that will be run; all by default.

        Raises:
            InputError: a name that none of these settings has.
        """
        model, weights, data = model or {}, weights or {}, data or {}
        used = list(self.settings() if used is None else used)
        _check_known("model", model, {s.architecture for s in used})
        _check_known("weights", weights, {s.architecture for s in used if s.job.weights})
        _check_known("data", data, {s.dataset for s in used})

        def changed(s: Setting) -> Setting:
            net, source = model.get(s.architecture), data.get(s.dataset)
            file = weights.get(s.architecture, s.job.weights) if s.job.weights else None
            return replace(
                s,
                architecture=s.architecture if net is None else net.rpartition("/")[2],
                dataset=s.dataset if source is None else Path(source.partition(":")[2] or source).stem,
                beside=s.beside if net is None and source is None else s.published,
                job=replace(s.job, model=net or s.job.model, weights=file, data=source or s.job.data),
            )

        seeds = self.seeds if seeds is None else seeds
        check_count("seeds", seeds, 1)
        return replace(
            self,
            seeds=seeds,
            transfer=tuple(map(changed, self.transfer)),
            magnitude=changed(self.magnitude),
            defended=tuple(map(changed, self.defended)),
            counted=changed(self.counted),
        )


def suite_named(name: str) -> Suite:
    """The suite of that name."""
    return lookup(SUITES, name, "scale")


def _check_known(what: str, given: Mapping[str, str], names: set[str]) -> None:
    """Refuse a name that nothing in this suite would take: the value would be dropped unseen."""
    if unknown := sorted(set(given) - names):
        known = ", ".join(sorted(names)) or "nothing"
        raise InputError(
            f"--{what} names {', '.join(unknown)}, which would change nothing: it is for {known}"
        )


def _train_job(model: str, data: str, epochs: int) -> TrainJob:
    return TrainJob(model=model, data=data, epochs=epochs, defense="vanilla")


def _transfer(architecture: str, dataset: str) -> Setting:
    """Section 4.1: a frozen ImageNet backbone, its head trained for 10 epochs; ImageNet as it is."""
    models = {
        "EfficientNet-B0": "torchvision/efficientnet_b0",
        "ResNet-50": "torchvision/resnet50",
        "ViT-B16": "torchvision/vit_b_16",
    }
    job = replace(_train_job(models[architecture], TRANSFER[dataset], 10), weights="pretrained")
    setting = Setting(architecture=architecture, dataset=dataset, job=job, batch_size=32)
    if dataset == "ImageNet":
        return replace(setting, as_is=True)
    return replace(setting, size=224, job=replace(job, freeze="backbone", augment="crop-flip"))


def _defense_setting(architecture: str, model: str) -> Setting:
    return Setting(architecture=architecture, dataset="CIFAR-10", job=_train_job(model, "cifar10", 200))


TRANSFER = {
    "Breast Cancer Ultrasound": "busi",
    "Chest X-ray": "chest",
    "MSTAR": "mstar",
    "CIFAR-100": "cifar100",
    "ImageNet": "imagenet",
}
LENET = Setting(architecture="LeNet", dataset="MNIST", job=_train_job("lenet", "mnist", 5))
FULL = Suite(
    name="full",
    transfer=tuple(_transfer(a, d) for a in ("EfficientNet-B0", "ResNet-50", "ViT-B16") for d in TRANSFER),
    magnitude=LENET,
    defended=(
        _defense_setting("ResNet-18", "resnet18"),
        _defense_setting("ResNet-50", "resnet50"),
        _defense_setting("WideResNet-50", "wide-resnet50-2"),
    ),
    counted=_defense_setting("WideResNet-50", "wide-resnet50-2"),
)
FULL_SETTINGS = {(s.architecture, s.dataset): s for s in FULL.settings()}

# S = 0.1 where a net is trained against attacks: at the paper's 0.03 MNIST's confidence hardly moves
SMALL = replace(
    LENET,
    dataset="MNIST (S = 0.1)",
    beside=("ResNet-18", "CIFAR-10"),
    job=replace(LENET.job, lr=0.05, eps_warmup=2),
    train=10_000,
    test=1000,
    train_eps=0.1,
    eps=0.1,
    step=0.0625,
)
CPU = Suite(
    name="cpu",
    transfer=tuple(
        replace(_transfer("EfficientNet-B0", name), train=train, test=test, fast=True, batch_size=8)
        for name, train, test in (
            ("Breast Cancer Ultrasound", None, 32),
            ("Chest X-ray", None, 32),
            ("MSTAR", 550, 33),
            ("ImageNet", None, 40),
        )
    ),
    magnitude=LENET,
    defended=(SMALL,),
    counted=replace(SMALL, beside=("WideResNet-50", "CIFAR-10")),
)

# one GPU: of CIFAR-10 ResNet-18 alone, for 25 epochs, one seed; Tables 1 and 2 as at full scale
QUICK = replace(
    FULL.defended[0],
    job=replace(FULL.defended[0].job, epochs=25, precision="bf16-mixed", channels_last=True),
    batch_size=1000,
)
GPU = replace(
    FULL,
    name="gpu",
    seeds=1,
    defended=(QUICK,),
    counted=replace(QUICK, beside=("WideResNet-50", "CIFAR-10")),
)

DIGITS = replace(
    LENET,
    dataset="digits",
    beside=("LeNet", "MNIST"),
    job=replace(_train_job("lenet", "digits", 30), lr=0.05),
    train=900,
    test=40,
    steps=3,
)
FEW = replace(  # too few steps to learn: these nets only show that nothing breaks
    SMALL,
    dataset="digits (S = 0.1)",
    job=replace(DIGITS.job, epochs=2),
    train=150,
    test=40,
    steps=3,
)
TINY = Suite(
    name="tiny",
    seeds=1,
    transfer=(
        replace(
            DIGITS,
            dataset="digits (transfer)",
            beside=("EfficientNet-B0", "Chest X-ray"),
            job=replace(DIGITS.job, freeze="backbone", augment="crop-flip", epochs=2),
        ),
    ),
    magnitude=DIGITS,
    defended=(replace(FEW, beside=("ResNet-18", "CIFAR-10")),),
    counted=replace(FEW, beside=("WideResNet-50", "CIFAR-10")),
    held=40,
)
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (TINY, CPU, GPU, FULL)}

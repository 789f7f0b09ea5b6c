"""`poise train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poise.checks import check_count
from poise.cli.parsing import check_asked
from poise.naming import check_taken, lookup, named_options
from poise.preparation import AS_IT_IS, Preparation
from poise.progress import bars

if TYPE_CHECKING:
    from poise.defenses import Defense


def train(
    *,
    data: str,
    out: Path,
    model: str = "lenet",
    defense: str = "vanilla",
    epochs: int = 5,
    seed: int = 0,
    eps: float | None = None,
    step: float | None = None,
    steps: int | None = None,
    option: tuple[str, ...] = (),
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    channels_last: bool = False,
    compile: bool = False,
    accumulate: int = 1,
    ema: float = 0.0,
    warmup: float = 0.0,
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine",
    augment: Literal["none", "crop-flip"] = "none",
    decay_norms: bool = True,
    freeze: str | None = None,
    weights: str | None = None,
    eps_warmup: float = 0.0,
    validation: float = 0.0,
    select: Literal["last", "accuracy", "pgd", "confsmooth"] = "last",
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"] = "auto",
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    tensorboard: bool = False,
    images: int | None = None,
    root: Path = Path("data"),
    read: Preparation = AS_IT_IS,
) -> None:
    """Train a model with a defense; the same command again resumes, also after a stop within an epoch.

    Args:
        data: Data set, see `poise list`.
        out: Run folder.
        model: Model, see `poise list`.
        defense: Defense, see `poise list`.
        epochs: Passes over the data.
        seed: Of the first weights, the order of the images and the attacks' draws.
        eps: Budget of the attack trained on, in pixels of [0, 1]; the defense's own by default.
        step: Its first step's size.
        steps: Its gradient steps.
        option: Other options of the defense, NAME=VALUE, such as beta=3 for trades.
        lr: Highest learning rate.
        momentum: Nesterov's momentum.
        weight_decay: Weight decay.
        batch_size: Images a step, over all devices and parts.
        precision: Of the forward passes; the weights stay float32.
        channels_last: Memory format that is faster on GPUs.
        compile: Let torch.compile make the kernels.
        accumulate: Parts in which a device takes its share of a step, to save memory.
        ema: Decay of the average of the weights that becomes the model; 0 for none.
        warmup: Epochs over which the learning rate rises.
        schedule: Of the learning rate after that.
        augment: Random crops and mirror images, or none.
        decay_norms: Weight decay of biases and normalisation layers too.
        freeze: "backbone" trains the last linear layer only; another name freezes that submodule.
        weights: File of weights to begin from, or "pretrained" for the published ones.
        eps_warmup: Epochs over which the budget rises.
        validation: Share of the training images set aside.
        select: Epoch whose weights count: the last, or the best on the images set aside, by accuracy, by
            accuracy under PGD, or by confidence under ConfSmooth (a wrong answer counting as 0).
        devices: Processes a machine, one a GPU; what torchrun says, else 1.
        nodes: Machines; what torchrun says, else 1.
        strategy: Lightning's name of it: auto or ddp.
        accelerator: auto, cpu or cuda.
        tensorboard: Write TensorBoard's files into the run folder.
        images: Train on so many, the same share of every class; all by default.
        root: Folder of downloaded data sets.
        read: How images are brought to one shape, and which are left out.
    """
    check_asked(out, seed=seed, images=images, devices=devices, nodes=nodes)
    from poise import data as sets
    from poise import training

    job = training.TrainJob(
        data=data,
        model=model,
        defense=defense,
        seed=seed,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        accumulate=accumulate,
        ema=ema,
        warmup=warmup,
        schedule=schedule,
        augment=augment,
        decay_norms=decay_norms,
        freeze=freeze,
        weights=weights,
        eps_warmup=eps_warmup,
        validation=validation,
        select=select,
    )
    chosen = _defense(defense, option, eps=eps, step=step, steps=steps)
    source = sets.load(data, split="train", images=images, seed=seed, root=root, preparation=read)
    fabric = training.fabric_for(
        job, devices=devices, nodes=nodes, strategy=strategy, accelerator=accelerator
    )
    with bars() as progress:
        training.train(job, source, chosen, out, fabric=fabric, progress=progress, tensorboard=tensorboard)
    if fabric.is_global_zero:
        print(f"trained: {out}")


def _defense(name: str, texts: tuple[str, ...], **flags: float | None) -> Defense:
    """The defense of that name with the options given.

    Raises:
        InputError: an option that it does not take, or no steps: its name would promise an attack.
    """
    from poise import defenses

    factory = lookup({**defenses.DEFENSES, **defenses.READINGS}, name, "defense")
    given = {flag: value for flag, value in flags.items() if value is not None}
    check_taken(factory, f"defense {name!r}", given, spelled="--")
    options: dict[str, Any] = given | named_options(factory, texts)
    if "steps" in options:
        check_count("steps", options["steps"], 1)
    return defenses.build(name, **options)

"""Evaluate: attack every batch, then look at the attacked images afresh."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from pickle import PicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from poise import labels, store
from poise.attacks import Attack, run
from poise.certify import Certificate
from poise.certify.bracket import check_bracket
from poise.checks import InputError, check_images, check_labels, check_logits
from poise.devices import PATIENCE, turn
from poise.metrics import perturbation
from poise.modes import LogitsAlone, call_model, check_one_answer, evaluating, logits_in, pair
from poise.records import Records
from poise.resources import suit_threads, using
from poise.shapes import Images, Labels, Model, Probabilities

Batches = Iterable[tuple[Images, Labels]]
Devices = Sequence[torch.device | str]


def evaluate(
    model: Model,
    batches: Batches,
    attack: Attack,
    *,
    seed: int = 0,
    examples: int = 8,
    on_batch: Callable[[int], object] = lambda images: None,
    on_records: Callable[[Records], object] = lambda records: None,
    devices: Devices = (),
    certificate: Certificate | None = None,
    start: int = 0,
) -> Records:
    """What the attack does to every image, by forwards that the attack has no part in.

    The judge runs in evaluation mode, without autocast, in float32 (float64 for a float64 model),
    at another batch size than the attack's. Every batch is attacked with the same seed, and draws
    belong to images, so results do not depend on how the data is cut into batches, nor on devices.
    The first batch says how many threads suit (`poise.resources`); a number of your own is kept.

    Args:
        model: images in [0, 1] -> logits, on the device that it is to run on. Of a dict, a tuple or a
            Hugging Face output, `logits` or the only tensor is taken.
        batches: (x (n, c, h, w), y (n,)) pairs; what follows in a batch is left. Where they are a data
            set, and the model has `class_names`, labels are matched by name.
        attack: given y if it attacks against the true label, else left to the model's prediction.
        seed: of the attack's draws.
        examples: how many images to keep in the records.
        on_batch: called with the number of images done in each batch.
        on_records: called with the records of each batch, in order, for who keeps them at once.
        devices: deal the batches out to these, a process and a copy of the model each, which Fabric
            starts: "cpu" several times, or GPUs, for which pickle must be able to send model, batches and
            attack. Every process draws all batches, so they must be the same each time; what is told of
            batches is told at the end. By default, the model runs where it lies.
        certificate: bounds the confidence over its ball round every image (`poise.certify`), in
            `records.lower` and `records.upper`.
        start: the number of the first image, for messages.

    Raises:
        InputError: no images, or images, labels, logits or attacked images that cannot be right; an
            attack that leaves the certificate's ball.
        UnsoundError: what the attack found lies outside the certificate's bounds.
    """
    check_one_answer(model)
    batches = labels.as_in(model, batches)
    home, work = _home(model, devices[0] if devices else None), (attack, seed, certificate)
    if len(devices) > 1:
        records = _by_processes(home, devices, batches, examples, start, *work)
        return Records.join(_told(records, certificate, start, on_records, on_batch))
    checked = _check_batches(batches, examples, start)
    first = deque(islice(checked, 1))
    every = chain((first.popleft() for _ in range(len(first))), checked)  # each let go when it is done

    def threads() -> int:
        x = first[0][0]
        return suit_threads(home.model, x[:2].to(home.device, home.dtype), images=len(x))

    with using(threads if first else None):
        records = (home.records(x, y, kept, *work) for x, y, kept in every)
        return Records.join(_told(records, certificate, start, on_records, on_batch))


@dataclass(frozen=True, eq=False)
class Home:
    """A model, where it lies, and the precision to judge it in."""

    model: Model
    device: torch.device
    dtype: torch.dtype

    def records(
        self, x: Images, y: Labels, kept: int, attack: Attack, seed: int, certificate: Certificate | None
    ) -> Records:
        """What the attack does to one batch; so many images of it are kept."""
        x, y = x.to(self.device, self.dtype), y.to(self.device)
        clean, plain = _judge(self.model, x, y)
        model = self.model if plain else LogitsAlone(self.model)
        generator = torch.Generator().manual_seed(seed)
        x_adv = run(attack, model, x.clone(), y, generator=generator)  # it may write into its input
        check_images(x_adv, "what the attack returned")
        if x_adv.shape != x.shape:
            raise InputError(
                f"the attack returned shape {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}"
            )
        x_adv = x_adv.detach().to(self.dtype)
        bounds = () if certificate is None else certificate(self.model, x.clone())[:2]
        part = (
            y.long(),
            clean,
            _judge(self.model, x_adv)[0],
            perturbation.linf(x_adv, x),
            perturbation.l2(x_adv, x),
            perturbation.delta_w(x_adv, x),
            perturbation.ssim(x_adv, x),
            x[:kept],
            x_adv[:kept],
            *bounds,
        )
        return Records(*(t.cpu() for t in part))


def _told(
    parts: Iterable[Records],
    certificate: Certificate | None,
    done: int,
    on_records: Callable[[Records], object],
    on_batch: Callable[[int], object],
) -> Iterator[Records]:
    """The records of each batch, held against the certificate and told of."""
    for part in parts:
        if certificate is not None:
            check_bracket(part, certificate, first=done)
        done += len(part)
        on_records(part)
        yield part
        on_batch(len(part))


def _check_batches(batches: Batches, examples: int, start: int) -> Iterator[tuple[Images, Labels, int]]:
    """The batches that hold images, and how many of each to keep so that the first ones are."""
    done = start
    for x, y in map(pair, batches):
        check_images(x, first=done)
        check_labels(y, len(x))
        done += len(x)
        if len(x):
            yield x, y, max(0, examples)
            examples -= len(x)


def _by_processes(
    home: Home,
    devices: Devices,
    batches: Batches,
    examples: int,
    start: int,
    *work: Any,
) -> Iterator[Records]:
    """The records of each batch, in the order of the batches, made by a process a device."""
    fabric = _processes(devices)
    with TemporaryDirectory() as folder:
        take_turns: Any = partial(_take_turns, Path(folder), home.model, batches, examples, start, *work)
        try:
            fabric.launch(take_turns)
        except (AttributeError, TypeError, PicklingError) as error:
            raise InputError(
                "several GPUs need a model, batches and an attack that pickle can send to a process "
                f"({error}): define them in a file, or take `poise evaluate --devices`"
            ) from error
        for refusal in sorted(Path(folder).glob("*.refused")):
            raise InputError(refusal.read_text())
        for file in sorted(Path(folder).glob("*.safetensors")):
            yield Records(**store.read_tensors(file)[0])


def _processes(devices: Devices) -> Fabric:
    """A Fabric of a process for each of these devices, which starts them when it is given work."""
    places = [torch.empty(0, device=name).device for name in devices]  # with the number of a GPU
    kind = places[0].type
    if {place.type for place in places} != {kind}:
        raise InputError(f"devices must be of one kind, got {', '.join(map(str, places))}: name GPUs alone")
    numbers = len(places) if kind == "cpu" else [place.index for place in places]
    # a forked process can have anything that this one has, but no GPU, and no more than one thread
    start = DDPStrategy(
        start_method="fork" if kind == "cpu" else "spawn", process_group_backend="gloo", timeout=PATIENCE
    )
    return Fabric(accelerator=kind, devices=numbers, strategy=start)


def _take_turns(
    folder: Path,
    model: Model,
    batches: Batches,
    examples: int,
    start: int,
    attack: Attack,
    seed: int,
    certificate: Certificate | None,
    fabric: Fabric,
) -> None:
    """Leave the records of this process's batches in the folder: each draws all, and takes its own."""
    torch.set_num_threads(1)
    home, number = _home(model, fabric.device), 0
    try:
        for number, (x, y, kept) in enumerate(_check_batches(batches, examples, start)):
            if turn(number, fabric.world_size) != fabric.global_rank:
                continue
            if any(folder.glob("*.refused")):
                return
            records = home.records(x, y, kept, attack, seed, certificate)
            store.write_tensors(folder / f"{number:08d}.safetensors", records.tensors())
    except InputError as error:
        store.write_text(folder / f"{number:08d}-{fabric.global_rank}.refused", str(error))


def _judge(model: Model, x: Images, y: Labels | None = None) -> tuple[Probabilities, bool]:
    """The probabilities at x, in two forwards of half the batch each; whether the model returns tensors."""
    with evaluating(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        kinds, halves = [], []
        for half in torch.split(x, (len(x) + 1) // 2):
            kinds.append(type(answer := call_model(model, half)))
            halves.append(logits_in(answer).clone())  # what is in a dict may be filled again
    logits = torch.cat(halves)
    check_logits(logits, len(x), y)
    return logits.to(x.dtype).softmax(dim=1), issubclass(kinds[0], torch.Tensor)


def _home(model: Model, device: torch.device | str | None) -> Home:
    """The model on the device: itself where it lies there, else a copy; None leaves it where it is."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(parameters, torch.empty(0))
    if first.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the model's weights are {first.dtype}, and attacks are judged in float32: give model.float()"
        )
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    place = first.device if device is None else torch.empty(0, device=device).device
    if isinstance(model, nn.Module) and place != first.device:
        model = copy.deepcopy(model).to(place)
    return Home(model, place, dtype)

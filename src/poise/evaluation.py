"""Evaluate: attack every batch, then look at the attacked images afresh."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from queue import SimpleQueue

import torch
from torch import nn

from poise import labels
from poise.attacks import Attack, run
from poise.certify import Certificate
from poise.certify.bracket import check_bracket
from poise.checks import InputError, check_choice, check_count, check_images, check_labels, check_logits
from poise.metrics import perturbation
from poise.modes import LogitsAlone, called, check_one_answer, evaluating, logits_in, pair
from poise.records import Records
from poise.resources import suited, using
from poise.shapes import Images, Labels, Model, Probabilities

Devices = Sequence[torch.device | str]


def evaluate(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
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
        devices: deal the batches out to these, a thread and a copy of the model each; the attack is
            then called from several threads, and autocast around this call does not reach them. By
            default, the model runs where it lies.
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
    homes, checked = _homes(model, devices), _check_batches(batches, examples, start)
    first = deque(islice(checked, 1))
    every = chain((first.popleft() for _ in range(len(first))), checked)  # each let go when it is done

    def threads() -> int:
        home, x = homes[0], first[0][0]
        return suited(home.model, x[:2].to(home.device, home.dtype), images=len(x))

    def parts() -> Iterator[Records]:
        done = start
        for part in _attack_batches(homes, every, attack, seed, certificate):
            if certificate is not None:
                check_bracket(part, certificate, first=done)
            done += len(part)
            on_records(part)
            yield part
            on_batch(len(part))

    with using(threads if first else None):
        return Records.join(parts())


def choose_devices(
    model: Model, *, devices: int | None = None, accelerator: str = "auto"
) -> list[torch.device]:
    """So many GPUs, all in sight by default, or the CPU where there is none or it is asked for.

    One alone for a model that runs elsewhere, as ONNX does: there is no copy of it.

    Raises:
        InputError: devices that are not there.
    """
    check_choice("accelerator", accelerator, ("auto", "cpu", "cuda"))
    there = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if accelerator == "cuda" and not there:
        raise InputError("accelerator='cuda' needs a GPU, and none is in sight: take 'cpu' or 'auto'")
    copied = isinstance(model, nn.Module) and next(model.parameters(), None) is not None
    most = max(1, there if copied else min(there, 1))
    if devices is not None:
        check_count("devices", devices, 1)
    if devices is not None and devices > most:
        kind = "GPUs that can work at once" if there else "CPU"
        raise InputError(
            f"devices={devices}, and there is no more than {most} {kind}: take --devices {most}"
        )
    return [torch.device("cuda", i) for i in range(devices or most)] if there else [torch.device("cpu")]


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


def _check_batches(
    batches: Iterable[tuple[Images, Labels]], examples: int, start: int
) -> Iterator[tuple[Images, Labels, int]]:
    """The batches that hold images, and how many of each to keep so that the first ones are."""
    done = start
    for x, y in map(pair, batches):
        check_images(x, first=done)
        check_labels(y, len(x))
        done += len(x)
        if len(x):
            yield x, y, max(0, examples)
            examples -= len(x)


def _attack_batches(
    homes: Sequence[Home],
    batches: Iterator[tuple[Images, Labels, int]],
    attack: Attack,
    seed: int,
    certificate: Certificate | None,
) -> Iterator[Records]:
    """The records of each batch, in the order of the batches."""
    if len(homes) == 1:
        for x, y, kept in batches:
            yield homes[0].records(x, y, kept, attack, seed, certificate)
        return
    free: SimpleQueue[Home] = SimpleQueue()
    for home in homes:
        free.put(home)

    def at_home(x: Images, y: Labels, kept: int) -> Records:
        home = free.get()  # there is one for every thread
        try:
            with torch.cuda.device(home.device) if home.device.type == "cuda" else nullcontext():
                return home.records(x, y, kept, attack, seed, certificate)
        finally:
            free.put(home)

    ahead: deque[Future[Records]] = deque()
    pool = ThreadPoolExecutor(len(homes), thread_name_prefix="evaluate")
    try:
        for x, y, kept in batches:  # copied: whoever gives them may fill the same memory again
            ahead.append(pool.submit(at_home, x.clone(), y.clone(), kept))
            if len(ahead) > len(homes):  # one a device, and one that waits
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _judge(model: Model, x: Images, y: Labels | None = None) -> tuple[Probabilities, bool]:
    """The probabilities at x, in two forwards of half the batch each; whether the model returns tensors."""
    with evaluating(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        kinds, halves = [], []
        for half in torch.split(x, (len(x) + 1) // 2):
            kinds.append(type(answer := called(model, half)))
            halves.append(logits_in(answer).clone())  # what is in a dict may be filled again
    logits = torch.cat(halves)
    check_logits(logits, len(x), y)
    return logits.to(x.dtype).softmax(dim=1), issubclass(kinds[0], torch.Tensor)


def _homes(model: Model, devices: Devices) -> list[Home]:
    """The model on each device; it is itself on the first that it lies on, the others are copies."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(parameters, torch.empty(0))
    if first.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the model's weights are {first.dtype}, and attacks are judged in float32: give model.float()"
        )
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    homes, own = list[Home](), model
    for name in devices:
        device = torch.empty(0, device=name).device  # with the number of a GPU
        if isinstance(model, nn.Module) and (len(homes) or device != first.device):
            own = copy.deepcopy(model).to(device)
        elif len(homes):
            raise InputError("several devices need a model that is an nn.Module, to copy it: name one")
        homes.append(Home(own, device, dtype))
    return homes or [Home(model, first.device, dtype)]

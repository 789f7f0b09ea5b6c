"""What attacks cost: passes of an image through the model and seconds, told before they run and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from poise.attacks import Aim, Attack, aim_of
from poise.checks import InputError
from poise.data import ImageSet
from poise.evaluation import evaluate
from poise.fast import eager
from poise.fast.prepare import notes_on
from poise.modes import ask, differentiable
from poise.shapes import Images, Labels, Logits, Model

SHARE = 100  # an attack is timed on at most a hundredth of the images
RUNG = 4  # times as many images as in the try before
QUICK = 1.0  # seconds: no pass that should take longer is timed
PATIENCE = 10.0  # seconds: no try that should take longer follows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one attack costs an image, judging and reading included.

    Attributes:
        name: of the attack.
        images: how many it was timed on, at once.
        seconds: an image, on one device.
        forwards, backwards: passes of an image through the model, the judge's two forwards among
            them; None where the attack walks on copies of the model, which are not counted.
    """

    name: str
    images: int
    seconds: float
    forwards: float | None
    backwards: float | None


@dataclass(frozen=True)
class Estimate:
    """What is left to do: so many images, under each of these attacks, over so many devices.

    Then some of them once more on one device, `watched` for the diagnostics.

    >>> cost = Cost(name="pgd", images=4, seconds=0.5, forwards=23, backwards=20)
    >>> estimate = Estimate(images=7200, costs=(cost, cost), devices=2)
    >>> estimate.seconds(cost), estimate.hours
    (1800.0, 1.0)
    """

    images: int
    costs: tuple[Cost, ...]
    devices: int = 1
    watched: int = 0

    def seconds(self, cost: Cost) -> float:
        """Of that attack on all images."""
        return cost.seconds * (self.images / self.devices + self.watched)

    @property
    def hours(self) -> float:
        """Of all attacks together."""
        return sum(map(self.seconds, self.costs)) / 3600


def plan(estimate: Estimate) -> str:
    """The estimate in words, a line an attack and one for all.

    >>> cost = Cost(name="pgd", images=4, seconds=0.5, forwards=23, backwards=20)
    >>> print(plan(Estimate(7200, (cost,))))
    pgd: about 1.0 h, 23 forwards and 20 backwards an image (tried on 4 at once)
    7200 images x 1 attack: about 1.0 h
    """
    lines = []
    for cost in estimate.costs:
        passes = ""
        if cost.forwards is not None and cost.backwards is not None:
            passes = f", {cost.forwards:.3g} forwards and {cost.backwards:.3g} backwards an image"
        about = duration(estimate.seconds(cost))
        lines.append(f"{cost.name}: about {about}{passes} (tried on {cost.images} at once)")
    return "\n".join([*lines, f"{work(estimate)}: about {duration(3600 * estimate.hours)}"])


def work(estimate: Estimate) -> str:
    """What there is to do, without its time."""
    attacks = f"{len(estimate.costs)} attack{'s' * (len(estimate.costs) != 1)}"
    devices = f" on {estimate.devices} devices" if estimate.devices > 1 else ""
    return f"{estimate.images} images x {attacks}{devices}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(0.25), duration(45), duration(90), duration(50400)
    ('0.2 s', '45 s', '1.5 min', '14 h')
    """
    size, unit = (3600, "h") if seconds >= 3600 else (60, "min") if seconds >= 60 else (1, "s")
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


class Counted(nn.Module):
    """A model that counts the images that go through it, forwards and backwards."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Images) -> Logits:
        logits: Logits = self.net(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def estimate(
    net: nn.Module,
    data: ImageSet,
    attacks: Mapping[str, Attack],
    *,
    devices: int = 1,
    watched: int = 0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """The time that these attacks will take on all images, from tries on the first few.

    Attacks differ tenfold in cost, so every one is tried on 1 image, then on 4, 16, ... at once: up
    to a batch, a hundredth of the images, or the try before one that should take more than 10 seconds.
    Each try is made twice and the second is timed: the first pays for what happens once. On a GPU an
    image costs less in a whole batch than in a try: as much less as in one pass, forward and back, or
    forward alone for an attack that asked for no gradient. Several devices are taken to share the work
    evenly.

    Args:
        net: images in [0, 1] -> logits, on its device.
        data: the images.
        attacks: by name.
        devices: how many share the images; the tries run where the net lies.
        watched: images on which every attack runs once more in the end.
        seed: of the attacks' draws.
        clock: seconds.
    """
    first = next(net.parameters(), torch.empty(0))

    def seconds(images: int, *, back: bool) -> float:
        x, _ = next(data.batched(images).batches(torch.arange(images)))
        return pass_seconds(net, x.to(first.device, first.dtype), back=back, clock=clock)

    pass_of = {back: cache(partial(seconds, back=back)) for back in (False, True)}
    batch, costs = min(data.batch_size, len(data)), []
    for name, attack in attacks.items():
        cost = _cost(net, data, name, attack, seed, clock)
        relief = _relief(pass_of[bool(cost.backwards)], cost.images, batch)  # of a black box: no gradient
        costs.append(replace(cost, seconds=cost.seconds * relief))
    return Estimate(len(data), tuple(costs), devices, min(watched, len(data)))


def passes(call: Callable[[nn.Module, Images, Labels], object]) -> tuple[int, int]:
    """Forwards and backwards an image that a call asks of a model, counted on four images and a small net.

    >>> from poise.attacks import pgd
    >>> passes(lambda net, x, y: pgd(steps=3)(net, x, y))
    (4, 3)
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = Counted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        call(net, x, y)
    return -(-net.forwards // len(x)), -(-net.backwards // len(x))


def pass_seconds(
    net: nn.Module, x: Images, *, back: bool, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one forward pass of these images, and one back if it is asked, the least of three."""
    x = x.detach().requires_grad_(back)
    took = []
    for _ in range(3):
        began = clock()
        with differentiable(net), torch.set_grad_enabled(back):
            logits = ask(net, x)
            last = torch.autograd.grad(logits.sum(), x)[0] if back else logits
        last.flatten()[0].item()  # waits for the device
        took.append(clock() - began)
    return min(took)


def pass_costs(
    net: nn.Module, data: ImageSet, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Seconds an image of a forward pass and of one back, in the largest part of a batch that is quick."""
    first, images = next(net.parameters(), torch.empty(0)), 1
    most = min(data.batch_size, len(data))
    while True:
        x, _ = next(data.batched(images).batches(torch.arange(images)))
        x = x.to(first.device, first.dtype)
        forward = pass_seconds(net, x, back=False, clock=clock)
        if images == most or RUNG * forward > QUICK:
            break
        images = min(RUNG * images, most)
    try:
        both = pass_seconds(net, x, back=True, clock=clock)
    except (InputError, RuntimeError):  # a model without gradients: nobody asks it for any
        both = forward
    return forward / images, max(0.0, both - forward) / images


def _cost(
    net: nn.Module, data: ImageSet, name: str, attack: Attack, seed: int, clock: Callable[[], float]
) -> Cost:
    most, images = max(1, min(data.batch_size, len(data) // SHARE)), 1
    counted = Counted(net)
    known = eager(attack) is attack
    timed = Timed(attack)
    while True:
        few = data.batched(images)
        counted.forwards = counted.backwards = 0

        def attempt(model: nn.Module, few: ImageSet = few, n: int = images) -> None:
            evaluate(model, few.batches(torch.arange(n)), timed, seed=seed, examples=0)

        attempt(counted if known else net)
        began = clock()
        attempt(net)
        seconds = clock() - began
        if images == most or seconds * min(RUNG, most / images) > PATIENCE:
            break
        images = min(RUNG * images, most)
    there, back = (counted.forwards / images, counted.backwards / images) if known else (None, None)
    return Cost(name=name, images=images, seconds=seconds / images, forwards=there, backwards=back)


def _relief(pass_of: Callable[[int], float], images: int, batch: int) -> float:
    """What an image costs in a batch relative to so many images at once, by single passes."""
    few = pass_of(images)
    if few == 0 or few * batch / images > PATIENCE:  # so slow that batches do not help
        return 1.0
    return pass_of(batch) / few * images / batch


class Timed:
    """An attack that counts the seconds it takes on every device, judging and loading left out.

    Of a `Fast` one it also tells how each model was prepared.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.times: list[float] = []
        self.models: WeakSet[nn.Module] = WeakSet()

    @property
    def notes(self) -> list[str]:
        """What was chosen, or tried and left out, one sentence each."""
        if eager(self.attack) is self.attack:
            return []
        notes = [note for model in self.models for note in notes_on(model)]
        return list(dict.fromkeys(notes))

    @property
    def aim(self) -> Aim:
        """As the attack."""
        return aim_of(self.attack)

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """As the attack."""
        if isinstance(model, nn.Module):
            self.models.add(model)
        began = time.perf_counter()
        x_adv = self.attack(model, x, y, generator=generator)
        if x_adv.is_cuda:
            torch.cuda.synchronize(x_adv.device)
        self.times.append(time.perf_counter() - began)
        return x_adv

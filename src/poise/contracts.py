"""What a part of one's own owes its caller, tried on a small net: every law with what was seen."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from poise import attacks, data, defenses, models
from poise.attacks import Attack, aim_of
from poise.attacks.deepfool import ORDERS
from poise.checks import BROKEN, InputError, check_images, check_logits
from poise.data import ImageSet
from poise.defenses import Defense
from poise.modes import ask, evaluating, logits_in
from poise.shapes import Images, Labels, Model
from poise.user_code import Kind, is_own, named_in

Shape: TypeAlias = tuple[int, int, int]
Look: TypeAlias = Callable[[], str]  # what is wrong; nothing where the law holds
TABLES: Mapping[Kind, Mapping[str, object]] = {
    "attacks": {**attacks.ATTACKS, **attacks.READINGS},
    "defenses": {**defenses.DEFENSES, **defenses.READINGS},
    "models": models.MODELS,
    "data": data.DATASETS,
}
SMALL: Shape = (3, 8, 8)
IMAGES = 6
NEAR = 1e-5  # by how much float32 may differ between an image alone and in a batch


class Law(NamedTuple):
    """What is owed, in words, and what was seen instead; nothing where it holds."""

    owed: str
    seen: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing else was seen."""
        return not self.seen


def kind_of(name: str) -> Kind:
    """What kind of part the name stands for; the code behind FILE.py:NAME is run for it.

    Raises:
        InputError: it stands for none, or for several.
    """
    if ".py:" in name:
        return _kind_in_file(name)
    found = [kind for kind, table in TABLES.items() if name in table or is_own(name, kind, table)]
    if len(found) != 1:
        said = f"is of several kinds, {' and '.join(found)}" if found else "is no part that is known here"
        raise InputError(f"{name!r} {said}: name --kind, one of {', '.join(TABLES)}")
    return found[0]


def check_part(
    name: str,
    kind: Kind | None = None,
    *,
    options: Mapping[str, Any] = {},
    shape: Shape = SMALL,
    classes: int = 5,
) -> list[Law]:
    """Whether the part by that name keeps each of the laws for its kind.

    Args:
        name: FILE.py:NAME, what a package offers, or a name of poise's own.
        kind: "attacks", "defenses", "models" or "data"; by default what it looks like.
        options: of an attack or a defense that is made of options.
        shape: (channels, height, width) of the images that it is tried on.
        classes: of the model.

    Raises:
        InputError: no such part.
    """
    kind = kind or kind_of(name)
    if kind == "attacks":
        laws = attack_laws(attacks.build(name, **options), shape=shape, classes=classes)
    elif kind == "defenses":
        laws = defense_laws(defenses.build(name, **options), shape=shape, classes=classes)
    elif kind == "models":
        laws = model_laws(name, shape=shape, classes=classes)
    else:
        laws = data_laws(name)
    return [Law(owed, _tried(look)) for owed, look in laws.items()]


def attack_laws(attack: Attack, *, shape: Shape = SMALL, classes: int = 5) -> dict[str, Look]:
    """What every attack owes, each with the look that tells whether it holds."""
    net, x = _net(shape, classes), _images(IMAGES, shape)
    aim, top = aim_of(attack), _predictions(net, x)
    y = top if aim.labels == "prediction" else (top + (torch.arange(IMAGES) % 3 == 0).long()) % classes

    def run(images: Images = x, *, on: Model | None = None, seed: int = 0) -> Images:
        labels = y[: len(images)] if aim.labels == "true" else None
        lent = copy.deepcopy(net) if on is None else on  # one attack may leave what another trips over
        return attack(lent, images.clone(), labels, generator=torch.Generator().manual_seed(seed))

    def alone() -> str:
        wide, images = copy.deepcopy(net).double(), x.double()
        together = run(images, on=wide)
        labels = y if aim.labels == "true" else [None] * len(x)
        each = [
            attack(wide, image[None], label if label is None else label[None], generator=_source())
            for image, label in zip(images, labels, strict=True)
        ]
        off = (together - torch.cat(each)).abs().max()
        return f"pixels differ by up to {off:.2g}" if off > 1e-6 else ""

    def without_labels() -> str:
        given = attack(copy.deepcopy(net), x.clone(), top, generator=_source())
        return "" if torch.equal(run(), given) else "other images than with the model's own answers as y"

    def switched_off() -> str:
        with torch.no_grad():
            return "" if torch.equal(run(), run_with_grad) else "other images inside torch.no_grad()"

    run_with_grad = run()
    laws: dict[str, Look] = {
        "it gives finite images in [0, 1], of the shape and type that it got": lambda: _alike(run(), x),
        "it stays within its eps of every image": lambda: _outside(attack, run(), x),
        "it gives the model back: modes, weights, gradients, hooks": lambda: _changed(
            (lent := _lent(net)), lambda: run(on=lent)
        ),
        "it leaves the images that it got as they are": lambda: _written(
            lambda at: attack(net, at, y if aim.labels == "true" else None, generator=_source()), x
        ),
        "it draws from the generator alone: one seed, the same bits": lambda: _drawn(run),
        "it attacks an image alone as it does in a batch": alone,
        "it works where gradients are switched off outside": switched_off,
        "it takes a batch without images": lambda: _alike(run(x[:0]), x[:0]),
    }
    if aim.labels == "prediction":
        laws["without y it attacks the model's own answers"] = without_labels
    if aim.keeps_label:
        laws["it keeps every answer, as it declares"] = lambda: _lost(net, run(), top)
    if aim.wants in ("lower", "higher"):
        laws[f"it moves the confidence as it declares: {aim.wants}"] = lambda: _moved(
            net, x, run(), top, aim.wants
        )
    return laws


def defense_laws(defense: Defense, *, shape: Shape = SMALL, classes: int = 5) -> dict[str, Look]:
    """What every defense owes, each with the look that tells whether it holds."""
    x, y = _images(IMAGES, shape), torch.arange(IMAGES) % classes
    net = _net(shape, classes, dropout=False).train()

    def loss(images: Images = x, *, on: Model | None = None, seed: int = 0) -> Tensor:
        lent = copy.deepcopy(net) if on is None else on  # one step may leave what another trips over
        return defense(lent, images, y[: len(images)], torch.Generator().manual_seed(seed))

    def number() -> str:
        found = loss(x.clone())
        if not isinstance(found, Tensor) or found.ndim:
            return f"a {type(found).__name__} of shape {tuple(getattr(found, 'shape', ()))}, not one number"
        return "" if torch.isfinite(found) else f"the loss {float(found)}"

    def gradient() -> str:
        lent = copy.deepcopy(net)
        found = torch.autograd.grad(loss(x.clone(), on=lent), [*lent.parameters()], allow_unused=True)
        if missing := sum(g is None or not bool(g.any()) for g in found):
            return f"{missing} of {len(found)} tensors of weights get none"
        return "" if all(bool(g.isfinite().all()) for g in found if g is not None) else "it is not finite"

    def small() -> str:
        found = loss(x[:2].clone())
        return "" if torch.isfinite(found).all() else f"the loss {float(found)}"

    return {
        "its loss is one finite number": number,
        "its gradient reaches all weights that train": gradient,
        "it gives the model back: modes, weights, gradients, hooks": lambda: _changed(
            (lent := _lent(net.train())), lambda: loss(x.clone(), on=lent), statistics=False
        ),
        "it leaves the images that it got as they are": lambda: _written(loss, x),
        "it draws from the generator alone: one seed, the same loss": lambda: _drawn(
            lambda *, seed: loss(x.clone(), seed=seed)
        ),
        "it takes a last batch of two images": small,
    }


def model_laws(name: str, *, shape: Shape = SMALL, classes: int = 5) -> dict[str, Look]:
    """What every model owes, each with the look that tells whether it holds."""
    x = _images(IMAGES, shape)

    def made(classes: int = classes) -> nn.Module:
        torch.manual_seed(0)
        return models.load(name, classes=classes, shape=shape)

    with torch.random.fork_rng(devices=[]):
        net = made()

    def answer(of: Model, x: Images) -> Tensor:
        with torch.no_grad():
            return logits_in(of(x))

    def logits() -> str:
        check_logits(answer(net, x), IMAGES)
        return ""

    def other_width() -> str:
        width = answer(made(2), x).shape[1]
        return "" if width == 2 else f"{width} logits where 2 classes are asked for"

    def one_by_one() -> str:
        return _apart(answer(net, x), torch.cat([answer(net, image[None]) for image in x]))

    def through() -> str:
        at = x.clone().requires_grad_()
        logits = logits_in(ask(net, at))
        if not logits.requires_grad:
            return "none: black-box attacks alone can be run"
        (found,) = torch.autograd.grad(logits.sum(dim=0)[0], at, allow_unused=True)
        return "" if found is not None and bool(found.any()) else "none: black-box attacks alone can be run"

    def written_and_read() -> str:
        again = made()
        again.load_state_dict(net.state_dict())
        return _apart(answer(net, x), answer(again, x))

    laws: dict[str, Look] = {
        "it answers every image with finite logits, one a class": logits,
        "it has as many logits as are asked for": other_width,
        "it says the same twice, in evaluation mode": lambda: _apart(answer(net, x), answer(net, x)),
        "it says of an image alone what it says in a batch": one_by_one,
        "it leaves the images that it got as they are": lambda: _written(lambda at: answer(net, at), x),
        "it lets gradients through to the image": through,
        "it begins with the same weights after torch.manual_seed": lambda: _apart(
            answer(made(), x), answer(made(), x)
        ),
        "its state dict holds all that it learns": written_and_read,
        "it can be copied": lambda: _apart(answer(net, x), answer(copy.deepcopy(net), x)),
    }
    return {owed: _forked(look) for owed, look in laws.items()}


def data_laws(name: str) -> dict[str, Look]:
    """What every data set owes, each with the look that tells whether it holds."""
    seen: dict[str, ImageSet] = {}

    def part(split: data.Split) -> ImageSet:
        return seen.setdefault(split, data.load(name, split=split))

    def images(split: data.Split) -> str:
        for x, _ in part(split):
            check_images(x)
        return ""

    def classes() -> str:
        one, other = part("train").classes, part("test").classes
        return "" if one == other else f"{len(one)} in training, {len(other)} in the test"

    def filled() -> str:
        there = torch.bincount(part("train").y, minlength=len(part("train").classes))
        missing = [c for c, n in zip(part("train").classes, there, strict=True) if not n]
        return f"none of {', '.join(missing)}" if missing else ""

    def apart() -> str:
        shared = int(torch.isin(part("test").marks(), part("train").marks()).sum())
        return f"{shared} of {len(part('test'))} test images" if shared else ""

    def again() -> str:
        same = data.load(name, split="test").fingerprint() == part("test").fingerprint()
        return "" if same else "other images at the second time"

    return {
        "its test images lie in [0, 1] and are of one shape": lambda: images("test"),
        "its training images do too": lambda: images("train"),
        "both parts have the same classes": classes,
        "every class has training images": filled,
        "no test image is among the training images": apart,
        "it gives the same images every time": again,
    }


def _kind_in_file(name: str) -> Kind:
    with named_in(name, "part {name}", "attacks") as found:
        takes = signature(found).parameters
        if {"classes", "shape"} <= {*takes}:
            return "models"
        if "split" in takes:
            return "data"
        made = found if "model" in takes or hasattr(found, "aim") else found()
    if hasattr(made, "aim"):
        return "attacks"
    y = signature(made).parameters.get("y") if callable(made) else None
    if y is None:
        raise InputError(f"{name} looks like no part: name --kind, one of {', '.join(get_args(Kind))}")
    return "defenses" if y.default is Parameter.empty else "attacks"


def _tried(look: Look) -> str:
    """What the look saw; of what fails, what was raised."""
    try:
        return look()
    except BROKEN as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _forked(look: Look) -> Look:
    def inside() -> str:
        with torch.random.fork_rng(devices=[]):
            return look()

    return inside


def _net(shape: Shape, classes: int, *, dropout: bool = True) -> nn.Sequential:
    """A small net, unsure of the images here; its BatchNorm knows their statistics."""
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(8 * height * width, classes)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8, momentum=1.0),
            nn.ReLU(),
            nn.Dropout(0.5 if dropout else 0.0),
            nn.Flatten(),
            last,
        )
        x = _images(64, shape)
        ask(net, x)
        net.eval()
        with torch.no_grad():
            last.weight.mul_(3 / ask(net, x).std())
            last.bias.sub_(ask(net, x).mean(dim=0))
    return net


def _images(n: int, shape: Shape) -> Images:
    numbers = torch.rand(n, *shape, generator=_source(), dtype=torch.float64)
    return (1.2 * numbers - 0.1).clamp(0, 1).float()  # one pixel in six at the border


def _source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _predictions(net: nn.Module, x: Images) -> Labels:
    with evaluating(net), torch.no_grad():
        answers: Labels = ask(net, x).argmax(dim=1)
        return answers


def _alike(x_adv: Images, x: Images) -> str:
    if not isinstance(x_adv, Tensor):
        return f"a {type(x_adv).__name__}"
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        return f"{x_adv.dtype} of shape {tuple(x_adv.shape)} for {x.dtype} of shape {tuple(x.shape)}"
    check_images(x_adv)
    return "a tensor that carries a gradient: return x_adv.detach()" if x_adv.requires_grad else ""


def _outside(attack: object, x_adv: Images, x: Images) -> str:
    ball = getattr(attack, "ball", attack)
    eps, norm = getattr(ball, "eps", None), getattr(ball, "norm", type(ball).__name__.lower())
    if not isinstance(eps, float | int):
        return ""
    order = ORDERS.get(norm, ORDERS["linf"])
    moved = torch.linalg.vector_norm((x_adv - x).double().flatten(1), ord=order, dim=1)
    pixel = torch.full_like(x[:1].double().flatten(1), 2.0**-24)  # half a unit in the last place of 1
    most = eps * (1 + 1e-6) + float(torch.linalg.vector_norm(pixel, ord=order))
    far = int((moved > most).sum())
    return f"{far} of {len(x)} images are further away, up to {float(moved.max()):.4g}" if far else ""


def _changed(net: nn.Module, run: Callable[[], object], *, statistics: bool = True) -> str:
    """What of the net is not as it was before the run."""
    before = dict(_state(net, statistics=statistics))
    run()
    after = dict(_state(net, statistics=statistics))
    return ", ".join(what for what, value in before.items() if after[what] != value)


def _state(net: nn.Module, *, statistics: bool) -> Iterator[tuple[str, object]]:
    tensors = net.state_dict() if statistics else dict(net.named_parameters())
    yield "modes", [module.training for module in net.modules()]
    yield "requires_grad", [p.requires_grad for p in net.parameters()]
    yield "gradients", [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    yield "weights", {name: value.tolist() for name, value in tensors.items()}
    yield (
        "hooks",
        [len(hooks) for m in net.modules() for k, hooks in vars(m).items() if k.endswith("_hooks")],
    )


def _lent(net: nn.Module) -> nn.Module:
    """A copy in training mode with one layer frozen by hand and one gradient."""
    lent = copy.deepcopy(net).train()
    _, norm, *_ = lent.children()
    norm.eval()
    first = next(lent.parameters())
    first.grad = torch.ones_like(first)
    return lent


def _written(run: Callable[[Images], object], x: Images) -> str:
    given = x.clone()
    run(given)
    return "" if torch.equal(x, given) else "they were written into"


def _drawn(run: Callable[..., Tensor]) -> str:
    """Whether one seed gives the same bits, and all other random states stay as they are."""
    before = _outer()
    first, second = run(seed=7), run(seed=7)
    if _outer() != before:
        return "a random state of the program was used: draw with generator="
    return "" if torch.equal(first, second) else "one seed gave two results"


def _outer() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def _lost(net: nn.Module, x_adv: Images, top: Labels) -> str:
    lost = int((_predictions(net, x_adv) != top).sum())
    return f"{lost} of {len(top)} answers are other ones" if lost else ""


def _moved(net: nn.Module, x: Images, x_adv: Images, top: Labels, wants: str) -> str:
    with evaluating(net), torch.no_grad():
        one, two = (ask(net, at).softmax(dim=1).gather(1, top[:, None]).mean() for at in (x, x_adv))
    went = float(two - one)
    right = went < 0 if wants == "lower" else went > 0
    return "" if right else f"it went from {float(one):.3f} to {float(two):.3f} on average"


def _apart(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    off = float((one - other).abs().max())
    return f"logits differ by up to {off:.2g}" if off > NEAR * (1 + float(one.abs().max())) else ""

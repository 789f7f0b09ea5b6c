"""Models that write into their input, or answer in a buffer that they fill again, change nothing."""

import inspect

import pytest
import torch
from torch import nn

from nets import conv_net, fitted, images
from poise import curves, data, evaluate, recalibration
from poise.attacks import ATTACKS, READINGS, auto, confsmooth, worst_case
from poise.compat import advlib, foolbox
from poise.defenses import DEFENSES
from poise.defenses import READINGS as DEFENSE_READINGS
from poise.diagnostics import diagnose
from poise.fast import accelerated

EVERY = {**ATTACKS, **READINGS}
TRAININGS = {**DEFENSES, **DEFENSE_READINGS}


class Writing(nn.Module):
    """The net at images twice as dark, which it makes where they lie."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.mul_(0.5))


class Plain(Writing):
    """The same without writing."""

    def forward(self, x):
        return self.net(x * 0.5)


class Reusing(Plain):
    """Answers without a graph lie in one buffer."""

    buffer = None

    def forward(self, x):
        logits = super().forward(x)
        if logits.requires_grad:
            return logits
        if self.buffer is None:
            self.buffer = torch.empty(4096, logits.shape[1])
        return self.buffer[: len(x)].copy_(logits)


KINDS = {"writing": Writing, "reusing": Reusing}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def attack_of(name):
    return fitted(EVERY, name, eps=0.1, steps=4, queries=30)


def sure():
    return conv_net(3, scale=20.0)


@every_kind
@pytest.mark.parametrize("name", EVERY)
def test_every_attack_ends_where_it_ends_on_the_plain_model(kind, name):
    x, y = images(6, 11), torch.arange(6) % 5
    before = x.clone()
    expected = attack_of(name)(Plain(sure()), x, y if attack_of(name).uses_labels else None)
    found = attack_of(name)(kind(sure()), x, y if attack_of(name).uses_labels else None)
    assert torch.equal(found, expected) and torch.equal(x, before)


@every_kind
@pytest.mark.parametrize("name", ["square", "auto", "pgd", "cw"])
def test_the_judge_s_records_are_those_of_the_plain_model(kind, name):
    x, y = images(10, 12), torch.arange(10) % 5
    before = x.clone()
    expected, found = (evaluate(net, [(x, y)], attack_of(name)) for net in (Plain(sure()), kind(sure())))
    for field, value in expected.tensors().items():
        assert torch.equal(getattr(found, field), value), field
    assert torch.equal(x, before)
    if name != "cw":
        assert float(found.linf.max()) <= 0.1


@every_kind
@pytest.mark.parametrize("name", TRAININGS)
def test_a_defense_s_loss_is_that_of_the_plain_model_and_its_batch_is_left_alone(kind, name):
    x, y = images(6, 13), torch.arange(6) % 5
    before = x.clone()
    defense = fitted(TRAININGS, name, eps=0.1, steps=2)
    seed = torch.Generator().manual_seed
    losses = [defense(net(sure()), x, y, seed(0)) for net in (Plain, kind)]
    assert torch.equal(*losses) and torch.equal(x, before)


@every_kind
def test_the_attacks_on_attacks_are_those_on_the_plain_model(kind):
    x = images(8, 14)
    before = x.clone()
    pair = Plain(sure()), kind(sure())
    makes = {
        "worst": lambda net: worst_case([confsmooth(steps=3), auto(steps=3)])(net, x),
        "curve": lambda net: curves.confidence_curve(net, x, lambda e: auto(eps=e, steps=3), [0.05, 0.1]),
        "least": lambda net: curves.minimum_eps(
            net,
            x,
            lambda e: auto(eps=e, steps=3),
            [0.1],
            threshold=0.6,
            norm=lambda a, b: (a - b).abs().amax((1, 2, 3)),
        ),
        "advlib": lambda net: advlib.confsmooth(net, x, torch.zeros(8, dtype=torch.long), eps=0.1, steps=3),
        "foolbox": lambda net: foolbox.pgd(steps=3)(net, x, torch.zeros(8, dtype=torch.long), epsilons=0.1)[
            1
        ],
        "fast": lambda net: accelerated(confsmooth(eps=0.1, steps=3))(net, x),
    }
    for name, make in makes.items():
        expected, found = (make(net) for net in pair)
        if name == "fast":
            torch.testing.assert_close(found, expected, rtol=0, atol=0.2)  # not bit-equal by design
            assert ((found - x).abs() <= 0.1).all()
        else:
            assert torch.equal(found, expected), name
        assert torch.equal(x, before), name


class Head(nn.Module):
    """Digits' 64 pixels to ten logits, after halving them in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.last, self.in_place = nn.Linear(64, 10), in_place
        with torch.no_grad():
            self.last.weight.copy_(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
            self.last.bias.zero_()

    def forward(self, x):
        return self.last((x.mul_(0.5) if self.in_place else x * 0.5).flatten(1))


def test_recalibration_and_diagnostics_see_the_images_as_they_are():
    source = data.load("digits", images=60, batch_size=20)
    before = torch.cat([x.clone() for x, _ in source])
    logits = [recalibration.logits_of(Head(in_place), source)[0] for in_place in (False, True)]
    assert torch.equal(*logits)
    [(x, y)] = data.load("digits", images=16, batch_size=16)
    kept = x.clone()
    plain, writing = (diagnose(Head(b), {"auto": auto(eps=0.1, steps=3)}, x, y) for b in (False, True))
    assert [f.kind for f in plain] == [f.kind for f in writing] and torch.equal(x, kept)
    assert torch.equal(torch.cat([x for x, _ in source]), before)


def test_nothing_in_poise_calls_a_model_but_by_ask():
    """So that what is added later hands out copies too."""
    import re
    from pathlib import Path

    import poise

    root = Path(inspect.getfile(poise)).parent
    calls = re.compile(
        r"(?<![\w.])(model|net|nets\.full|nets\.low)\((x|at|half|seen|image|images|x_adv|center)\b[^=:]*\)"
    )
    inside = {"modes.py"}  # the one place
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.name not in inside and path.parent.name != "models"
        for line in path.read_text().splitlines()
        if calls.search(line)
        and not line.strip().startswith(("def ", ">>>", "...", "#", '"'))
        and "lambda" not in line
    ]
    assert found == []
